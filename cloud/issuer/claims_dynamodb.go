package issuer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

// The attributes of an item in the table of claims. All are strings, bar the generation, a number.
const (
	attrClaimID     = "claim-id" // partition key
	attrDevice      = "device-id"
	attrFingerprint = "key-fingerprint"
	attrGeneration  = "generation"
	attrSerial      = "serial"
	attrNotBefore   = "not-before"
	attrNotAfter    = "not-after"
	attrCreated     = "created"
	attrCertificate = "certificate"       // PEM; absent until the claim is finished
	attrChain       = "certificate-chain" // PEM
)

// ClaimsTable is the name of the table of claims of a SKU.
func ClaimsTable(sku string) string { return sku + "-iot-issuance" }

// ClaimsDynamoDBConfig says where the table is. Credentials come from the SDK's usual places.
type ClaimsDynamoDBConfig struct {
	Table    string
	Region   string
	Endpoint string // empty for AWS's own
}

// ClaimsDynamoDB keeps claims in a table with the partition key claim-id (S), one item for each. It needs
// dynamodb:PutItem, GetItem and UpdateItem on that table. It is made by OpenClaimsDynamoDB.
type ClaimsDynamoDB struct {
	client *dynamodb.Client
	table  string
}

// OpenClaimsDynamoDB makes the client. It does not call the table, so that an outage does not keep an
// issuer from starting.
func OpenClaimsDynamoDB(ctx context.Context, c ClaimsDynamoDBConfig) (*ClaimsDynamoDB, error) {
	if c.Table == "" || c.Region == "" {
		return nil, errors.New("claims in DynamoDB: it needs a table and a region")
	}
	loaded, err := config.LoadDefaultConfig(ctx,
		config.WithRegion(c.Region),
		config.WithRetryMaxAttempts(3),
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(5*time.Second)))
	if err != nil {
		return nil, fmt.Errorf("claims in DynamoDB: loading the AWS configuration: %w", err)
	}
	return &ClaimsDynamoDB{table: c.Table, client: dynamodb.NewFromConfig(loaded, func(o *dynamodb.Options) {
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})}, nil
}

// Claim is that of the interface Claims.
func (d *ClaimsDynamoDB) Claim(ctx context.Context, proposal Claim) (Issuance, error) {
	s := storeClaim(proposal)
	text := func(v string) types.AttributeValue { return &types.AttributeValueMemberS{Value: v} }
	_, err := d.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName:                aws.String(d.table),
		ConditionExpression:      aws.String("attribute_not_exists(#id)"),
		ExpressionAttributeNames: map[string]string{"#id": attrClaimID},
		Item: map[string]types.AttributeValue{
			attrClaimID: text(s.ID), attrDevice: text(s.Device.String()), attrFingerprint: text(s.Fingerprint.String()),
			attrGeneration: &types.AttributeValueMemberN{Value: strconv.Itoa(s.Generation)},
			attrSerial:     text(s.Serial), attrNotBefore: text(s.NotBefore), attrNotAfter: text(s.NotAfter), attrCreated: text(s.Created),
		},
	})
	if err == nil {
		return Issuance{Claim: proposal}, nil
	}
	// The condition may have failed on our own write, whose answer was lost; any other error may hide a write
	// that was done. What is stored tells.
	issuance, found, readErr := d.read(ctx, s.ID)
	switch {
	case readErr != nil:
		return Issuance{}, fmt.Errorf("writing a claim: %w", errors.Join(err, readErr))
	case !found:
		return Issuance{}, fmt.Errorf("writing a claim: %w", err)
	}
	return issuance, nil
}

// Finish is that of the interface Claims.
func (d *ClaimsDynamoDB) Finish(ctx context.Context, claim Claim, certificate Certificate) (Certificate, error) {
	_, err := d.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName:           aws.String(d.table),
		Key:                 map[string]types.AttributeValue{attrClaimID: &types.AttributeValueMemberS{Value: claim.ID()}},
		UpdateExpression:    aws.String("SET #certificate = :certificate, #chain = :chain"),
		ConditionExpression: aws.String("#serial = :serial AND attribute_not_exists(#certificate)"),
		ExpressionAttributeNames: map[string]string{
			"#serial": attrSerial, "#certificate": attrCertificate, "#chain": attrChain,
		},
		ExpressionAttributeValues: map[string]types.AttributeValue{
			":serial":      &types.AttributeValueMemberS{Value: claim.Serial.String()},
			":certificate": &types.AttributeValueMemberS{Value: string(certificate.LeafPEM())},
			":chain":       &types.AttributeValueMemberS{Value: string(certificate.ChainPEM())},
		},
	})
	if err == nil {
		return certificate, nil
	}
	issuance, found, readErr := d.read(ctx, claim.ID())
	switch {
	case readErr != nil:
		return Certificate{}, fmt.Errorf("writing a certificate: %w", errors.Join(err, readErr))
	case !found || issuance.Claim.Serial != claim.Serial:
		return Certificate{}, fmt.Errorf("%w: %s with serial %s: %w", ErrNoClaim, claim.ID(), claim.Serial, err)
	case issuance.Certificate == nil:
		return Certificate{}, fmt.Errorf("writing a certificate: %w", err)
	}
	return *issuance.Certificate, nil
}

func (d *ClaimsDynamoDB) read(ctx context.Context, id string) (Issuance, bool, error) {
	out, err := d.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:      aws.String(d.table),
		Key:            map[string]types.AttributeValue{attrClaimID: &types.AttributeValueMemberS{Value: id}},
		ConsistentRead: aws.Bool(true),
	})
	if err != nil {
		return Issuance{}, false, fmt.Errorf("reading a claim: %w", err)
	}
	if len(out.Item) == 0 {
		return Issuance{}, false, nil
	}
	text := func(name string) string {
		if v, ok := out.Item[name].(*types.AttributeValueMemberS); ok {
			return v.Value
		}
		return ""
	}
	s := storedClaim{
		ID: text(attrClaimID), Serial: text(attrSerial),
		NotBefore: text(attrNotBefore), NotAfter: text(attrNotAfter), Created: text(attrCreated),
	}
	if s.Device, err = board.ParseDeviceID(text(attrDevice)); err != nil {
		return Issuance{}, false, fmt.Errorf("%w: %s: %v", ErrBadClaim, id, err)
	}
	if s.Fingerprint, err = board.ParseFingerprint(text(attrFingerprint)); err != nil {
		return Issuance{}, false, fmt.Errorf("%w: %s: %v", ErrBadClaim, id, err)
	}
	if n, ok := out.Item[attrGeneration].(*types.AttributeValueMemberN); ok {
		s.Generation, err = strconv.Atoi(n.Value)
	}
	if err != nil {
		return Issuance{}, false, fmt.Errorf("%w: %s: %v", ErrBadClaim, id, err)
	}
	claim, err := loadClaim(id, s)
	if err != nil {
		return Issuance{}, false, err
	}
	issuance := Issuance{Claim: claim}
	if leaf := text(attrCertificate); leaf != "" {
		certificate, err := loadCertificate(id, []byte(leaf), []byte(text(attrChain)))
		if err != nil {
			return Issuance{}, false, err
		}
		issuance.Certificate = &certificate
	}
	return issuance, true, nil
}
