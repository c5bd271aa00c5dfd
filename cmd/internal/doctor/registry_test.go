package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"secretfree/cloud"
	"secretfree/cmd/internal/control"
	"secretfree/cmd/internal/stationconf"
	"secretfree/station/board"
)

// registry is a registry in AWS that answers as it is told.
type registry struct {
	credentials    cloud.CredentialsInfo
	credentialsErr error
	took           time.Duration
	clock          time.Time
	tripErr        error
	table          cloud.TableInfo
	tableErr       error
	bucket         cloud.BucketInfo
	bucketErr      error
	rights         []cloud.Right
	rightsErr      error
	probes         []cloud.Probe
	probesErr      error
}

func (r *registry) Location() cloud.Location {
	return cloud.Location{Table: "the-table", Bucket: "the-bucket", Region: "us-east-1"}
}
func (r *registry) DescribeCredentials(context.Context) (cloud.CredentialsInfo, error) {
	return r.credentials, r.credentialsErr
}
func (r *registry) Ping(context.Context) (time.Duration, time.Time, error) {
	return r.took, r.clock, r.tripErr
}
func (r *registry) DescribeTable(context.Context) (cloud.TableInfo, error) {
	return r.table, r.tableErr
}
func (r *registry) DescribeBucket(context.Context) (cloud.BucketInfo, error) {
	return r.bucket, r.bucketErr
}
func (r *registry) TryRights(context.Context, string, *board.Record) ([]cloud.Right, error) {
	return r.rights, r.rightsErr
}

func (r *registry) ProbeConditions(context.Context, string) ([]cloud.Probe, error) {
	return r.probes, r.probesErr
}

func yes(b bool) *bool { return &b }

func TestAWS(t *testing.T) {
	p := newPatient(t)
	denied := fmt.Errorf("%w: what AWS says", cloud.ErrNotPermitted)
	for _, test := range []struct {
		name       string
		spoil      func(r *registry, e *exam)
		want, text string
	}{
		{"good", func(*registry, *exam) {}, "ok registry.rights", "permitted: s3:PutObject on x"},
		{"shown nothing", func(r *registry, _ *exam) { r.tableErr = denied; r.bucket = cloud.BucketInfo{} }, "ok registry.table", "has the right key"},
		{"shown nothing", func(r *registry, _ *exam) { r.bucket = cloud.BucketInfo{} }, "ok registry.bucket", "is not shown"},
		{"no clock", func(r *registry, _ *exam) { r.clock = time.Time{} }, "ok clock.registry", "does not tell"},
		{"none", func(r *registry, e *exam) {
			r.credentialsErr = errors.New("no AWS credentials were found")
			e.owner.ok = false
		}, "fail registry.credentials", "no AWS credentials were found"},
		{"expired", func(r *registry, _ *exam) { r.credentials.Expires = time.Now().Add(-time.Hour) }, "fail registry.credentials", "they have expired"},
		{"expire soon", func(r *registry, _ *exam) { r.credentials.Expires = time.Now().Add(time.Minute) }, "warn registry.credentials", "they expire at"},
		{"of another", func(_ *registry, e *exam) { e.UID = 4242 }, "warn registry.credentials", "are of the user who runs this"},
		{"of a role", func(r *registry, e *exam) {
			e.UID, r.credentials = 4242, cloud.CredentialsInfo{Source: "EC2RoleProvider", Expires: time.Now().Add(time.Minute)}
		}, "ok registry.credentials", "EC2RoleProvider"},
		{"away", func(r *registry, _ *exam) { r.tripErr = errors.New("the proxy does not answer") }, "fail registry.reach", "the proxy does not answer"},
		{"away for this user", func(r *registry, e *exam) { r.tripErr = errors.New("away"); e.running = new(control.DaemonStatus) }, "warn registry", "the station itself reports no trouble"},
		{"wrong clock", func(r *registry, _ *exam) { r.tripErr = errors.New("the clock"); r.clock = r.clock.Add(time.Hour) }, "fail clock.registry", "1h0m"},
		{"may not read", func(r *registry, _ *exam) { r.tripErr = denied }, "fail registry.rights", "dynamodb:GetItem on the-table"},
		{"slow", func(r *registry, _ *exam) { r.took = 3 * time.Second }, "warn registry.time", "answers in 3s"},
		{"table fault", func(r *registry, _ *exam) { r.tableErr = errors.New("throttled") }, "warn registry.table", "throttled"},
		{"sort key", func(r *registry, _ *exam) { r.table.Key = "device-id (S), claim (S)" }, "fail registry.table", "has the key device-id (S), claim (S)"},
		{"being made", func(r *registry, _ *exam) { r.table.Active = false }, "warn registry.table", "is not active"},
		{"no recovery", func(r *registry, _ *exam) { r.table.Recovery = yes(false); r.table.OnDemand = false }, "warn registry.table", "(with provisioned capacity): recovery to a point in time is off"},
		{"not protected", func(r *registry, _ *exam) { r.table.Protected = false }, "warn registry.table", "can be deleted by one call"},
		{"no bucket", func(r *registry, _ *exam) { r.bucketErr = errors.New("there is no bucket") }, "fail registry.bucket", "there is no bucket"},
		{"no versions", func(r *registry, _ *exam) { r.bucket.Versioned = yes(false) }, "warn registry.bucket", "keeps no versions"},
		{"locked", func(r *registry, _ *exam) { r.bucket.Locked = yes(true) }, "ok registry.bucket", "locks objects"},
		{"no rights told", func(r *registry, _ *exam) { r.rightsErr = errors.New("no such station") }, "warn registry.rights", "no such station"},
		{"may not write", func(r *registry, _ *exam) {
			r.rights[0] = cloud.Right{Action: "s3:PutObject", On: "x", Why: "storing", Known: true, Err: denied}
		}, "fail registry.rights", "s3:PutObject on x, for storing, is not permitted"},
		{"not tried", func(r *registry, _ *exam) {
			r.rights[0] = cloud.Right{Action: "s3:PutObject", On: "x", Err: errors.New("500")}
		}, "warn registry.rights", "could not be tried"},
		{"no real store", func(r *registry, _ *exam) { r.rights[0].Err = errors.New("took an object whose checksum is wrong") }, "warn registry.store", "whose checksum is wrong"},
		{"no real table", func(r *registry, _ *exam) {
			r.rights[0] = cloud.Right{Action: "dynamodb:PutItem", On: "the-table", Known: true, Allowed: true, Err: fmt.Errorf("%w: x", cloud.ErrNoConditions)}
		}, "fail registry.store", "cannot keep two stations from enrolling one board"},
		{"conditions kept", func(r *registry, _ *exam) { r.probes = []cloud.Probe{{Store: "table t"}} }, "ok registry.conditions", "table t refuses a second write"},
		{"conditions ignored", func(r *registry, _ *exam) {
			r.probes = []cloud.Probe{{Store: "table t"}, {Store: "bucket b", Err: fmt.Errorf("bucket b: %w", cloud.ErrOverwrites)}}
		}, "fail registry.conditions", "bucket b: the store has taken a write"},
		{"conditions not permitted", func(r *registry, _ *exam) {
			r.probes = []cloud.Probe{{Store: "bucket b", Err: denied}}
		}, "warn registry.conditions", "could not be probed"},
		{"conditions not probed", func(r *registry, _ *exam) {
			r.probes = []cloud.Probe{{Store: "bucket b", Err: errors.New("500")}}
		}, "warn registry.conditions", "could not be probed: 500"},
		{"no probe", func(r *registry, _ *exam) { r.probesErr = errors.New("no such station") }, "warn registry.conditions", "no such station"},
		{"nothing to try", func(r *registry, _ *exam) {
			r.rights = append(r.rights, cloud.Right{Action: "s3:GetObject", On: "y", Err: errors.New("there is nothing yet to try it on")})
		}, "ok registry.rights", "nothing yet to try these on: s3:GetObject on y"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &registry{credentials: cloud.CredentialsInfo{Source: "SharedConfigCredentials: /x"}, took: 20 * time.Millisecond, clock: time.Now(),
				table:  cloud.TableInfo{Active: true, Key: cloud.WantedKey, OnDemand: true, Protected: true, Recovery: yes(true)},
				bucket: cloud.BucketInfo{Versioned: yes(true), Locked: yes(false)}, rights: []cloud.Right{{Action: "s3:PutObject", On: "x", Known: true, Allowed: true}}}
			e := p.exam()
			test.spoil(r, e)
			results := e.checkAWS(t.Context(), r)
			want(t, results, test.want, test.text)
			if strings.HasPrefix(test.want, "ok") {
				onlyOK(t, results)
			}
		})
	}
}

func TestFolder(t *testing.T) {
	p := newPatient(t)
	e := p.exam()
	onlyOK(t, e.checkFolder(t.Context(), p.registry), "registry.copy")
	want(t, e.checkFolder(t.Context(), p.registry), "warn registry.copy", "one lost disk loses both")
	want(t, e.checkFolder(t.Context(), p.registry+"-none"), "fail registry.folder", "is no registry")
	e.owner = owner{name: "somebody", uid: 4242, gids: []uint32{4242}, ok: true}
	want(t, e.checkFolder(t.Context(), p.registry), "fail registry.folder", "somebody may not write to "+p.registry)
	e = p.exam()
	p.file("proc/self/mountinfo", fmt.Sprintf("22 1 0:50 / %s rw - nfs4 server:/x rw\n", p.registry))
	want(t, e.checkFolder(t.Context(), p.registry), "warn registry.filesystem", "network share (nfs4)")
	p.file("proc/self/mountinfo", fmt.Sprintf("22 1 0:50 / %s rw - tmpfs x rw\n", p.registry))
	want(t, e.checkFolder(t.Context(), p.registry), "fail registry.filesystem", "is gone when")
	e.station.Disk = stationconf.Disk{Warn: 0, Critical: 101}
	want(t, e.checkFolder(t.Context(), p.registry), "warn registry.room", "are free")
	e.station.Disk = stationconf.Disk{Warn: 0, Critical: 0}
	want(t, e.checkFolder(t.Context(), p.registry), "fail registry.room", "are free")
	marker := p.registry + "/registry.json"
	must(t, os.WriteFile(marker, []byte("nonsense"), 0o600))
	want(t, e.checkFolder(t.Context(), p.registry), "fail registry.folder", "cannot be used")
	want(t, folderError("/x", os.ErrPermission, false, "run it as root"), "warn registry.folder", "could not be looked into")
	want(t, judgeFull(p.registry+"/none", stationconf.Disk{}), "warn registry.room", "no such file")
	for _, test := range []struct {
		uid  uint32
		gids []uint32
		mode os.FileMode
		may  bool
	}{{4242, nil, 0o755, false}, {4242, nil, 0o757, true}, {4242, []uint32{uint32(os.Getegid())}, 0o775, true}, {4242, []uint32{uint32(os.Getegid())}, 0o755, false}, {0, nil, 0o000, true}} {
		must(t, os.Chmod(p.state, test.mode))
		e := &exam{owner: owner{uid: test.uid, gids: test.gids, ok: true}}
		e.UID = -1
		if got := e.mayWrite(p.state); got != test.may {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

func TestNoRegistry(t *testing.T) {
	p := newPatient(t)
	p.rest = "[registry]\nkind = \"none\"\n"
	onlyOK(t, p.exam().checkRegistry(t.Context()))
	p.rest = "[registry]\nkind = \"aws\"\nbucket = \"a-bucket\"\n"
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	want(t, p.exam().checkRegistry(t.Context()), "fail registry", "no region")
	e := p.exam()
	e.station.Registry.Kind = "another"
	want(t, e.checkRegistry(t.Context()), "fail registry", "registry.kind is \"another\"")
}

// Against the real peers, or what stands in for AWS and denies.
func TestAgainstServers(t *testing.T) {
	p := newPatient(t)
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Run("denied", func(t *testing.T) {
		t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Amz-Target") != "" {
				w.WriteHeader(400)
				fmt.Fprint(w, `{"__type":"com.amazonaws.dynamodb.v20120810#AccessDeniedException","message":"no"}`)
				return
			}
			w.WriteHeader(403)
			fmt.Fprint(w, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
		}))
		t.Cleanup(s.Close)
		p.rest = fmt.Sprintf("[registry]\nkind = \"aws\"\nbucket = \"a-bucket\"\nregion = \"us-east-1\"\ndynamodb_endpoint = %q\ns3_endpoint = %q\n", s.URL, s.URL)
		results := p.exam().checkRegistry(t.Context())
		for _, what := range []string{"dynamodb:GetItem", "dynamodb:PutItem", "s3:PutObject on a-bucket/pubkeys/*", "s3:PutObject on a-bucket/journal/line3-a/*", "s3:ListBucket"} {
			want(t, results, "fail registry.rights", what)
		}
	})
	t.Run("peers", func(t *testing.T) {
		dynamoURL, s3URL := os.Getenv("SECRETFREE_DYNAMODB_ENDPOINT"), os.Getenv("SECRETFREE_S3_ENDPOINT")
		if dynamoURL == "" || s3URL == "" {
			const message = "SECRETFREE_DYNAMODB_ENDPOINT and SECRETFREE_S3_ENDPOINT are not set: run this under .ci/peers.sh run"
			if os.Getenv("CI") == "true" {
				t.Fatal(message)
			}
			t.Skip(message)
		}
		bucket := fmt.Sprintf("doctor-%d", time.Now().UnixNano())
		loaded, err := awsconfig.LoadDefaultConfig(t.Context(), awsconfig.WithRegion("us-east-1"))
		must(t, err)
		dynamo := dynamodb.NewFromConfig(loaded, func(o *dynamodb.Options) { o.BaseEndpoint = &dynamoURL })
		_, err = dynamo.CreateTable(t.Context(), &dynamodb.CreateTableInput{TableName: &bucket, BillingMode: types.BillingModePayPerRequest,
			AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("device-id"), AttributeType: types.ScalarAttributeTypeS}},
			KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("device-id"), KeyType: types.KeyTypeHash}}})
		must(t, err)
		_, err = s3.NewFromConfig(loaded, func(o *s3.Options) { o.BaseEndpoint = &s3URL; o.UsePathStyle = true }).CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &bucket})
		must(t, err)
		p.rest = fmt.Sprintf("[registry]\nkind = \"aws\"\ntable = %q\nbucket = %q\nregion = \"us-east-1\"\ndynamodb_endpoint = %q\ns3_endpoint = %q\n", bucket, bucket, dynamoURL, s3URL)
		results := p.exam().checkRegistry(t.Context())
		onlyOK(t, results, "registry.table", "registry.bucket", "registry.time")
		want(t, results, "ok registry.rights", "dynamodb:PutItem on "+bucket)
		p.rest = strings.Replace(p.rest, fmt.Sprintf("table = %q", bucket), `table = "another"`, 1)
		want(t, p.exam().checkRegistry(t.Context()), "fail registry.reach", "there is no table another")
	})
}
