package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	minidyn "github.com/truora/minidyn/server"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/station/board"
)

// The table is away after the first item: the rest is left, and the next run
// carries on.
func TestImportBreaksOff(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret",
	} {
		t.Setenv(name, value)
	}
	dynamo, writes, limit := minidyn.NewServer(), 0, 1
	table := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".TransactWriteItems") {
			if writes++; writes > limit {
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprint(w, `{"__type":"x#AccessDeniedException","message":"no"}`)
				return
			}
		}
		dynamo.ServeHTTP(w, r)
	}))
	t.Cleanup(table.Close)
	bucket := httptest.NewServer(gofakes3.New(s3mem.New(), gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
	t.Cleanup(bucket.Close)

	loaded, err := awsconfig.LoadDefaultConfig(t.Context(), awsconfig.WithRegion("us-east-1"), awsconfig.WithLogger(logging.Nop{}))
	must(t, err)
	client := dynamodb.NewFromConfig(loaded, func(o *dynamodb.Options) { o.BaseEndpoint = &table.URL })
	_, err = client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: aws.String(cloud.Table("widgiot")), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("device-id"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("device-id"), KeyType: types.KeyTypeHash}},
	})
	must(t, err)
	_, err = s3.NewFromConfig(loaded, func(o *s3.Options) { o.BaseEndpoint, o.UsePathStyle = &bucket.URL, true }).
		CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: aws.String("widgiot-pubkeys")})
	must(t, err)
	const items = 4
	for n := range items {
		_, err := client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String(cloud.Table("widgiot")), Item: map[string]types.AttributeValue{
			"device-id": &types.AttributeValueMemberS{Value: board.DeviceID{15: byte(n + 1)}.String()},
			"pubkey":    &types.AttributeValueMemberS{Value: string(newKey(t).PEM())},
		}})
		must(t, err)
	}

	dir := t.TempDir()
	config, _ := configFile(t, dir, fmt.Sprintf("kind = \"aws\"\nbucket = \"widgiot-pubkeys\"\nregion = \"us-east-1\"\ndynamodb_endpoint = %q\ns3_endpoint = %q", table.URL, bucket.URL))
	key := filepath.Join(dir, "operator")
	run := func(command importTable) (string, error) {
		t.Helper()
		var out bytes.Buffer
		err := command.Run(t.Context(), &cli.Output{Out: &out, People: &out, Err: &out})
		return out.String(), err
	}
	_, err = run(importTable{InitKey: key, Name: "widgiot/operator"})
	must(t, err)
	out, err := run(importTable{Config: config, Apply: true, Key: key})
	if !errors.Is(err, cli.ErrShown) || !strings.Contains(out, "Imported: 1; signed already: 0; refused: 0.\nIt broke off with 3 left: run it again.\n") {
		t.Errorf("got %v and:\n%s", err, out)
	}
	if strings.Count(out, "failed  ") != 1 || !strings.Contains(out, "allow it in the IAM role") || writes != 2 {
		t.Errorf("after the first failure, it tried %d times and says:\n%s", writes, out)
	}
	limit = 1 << 20
	out, err = run(importTable{Config: config, Apply: true, Key: key})
	if err != nil || !strings.Contains(out, "Imported: 3; signed already: 1; refused: 0.\n") {
		t.Errorf("got %v and:\n%s", err, out)
	}
	out, err = run(importTable{Config: config})
	if err != nil || !strings.Contains(out, fmt.Sprintf("Signed already: %d; can be signed: 0; refused: 0.", items)) {
		t.Errorf("got %v and:\n%s", err, out)
	}
}
