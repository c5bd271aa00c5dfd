package claims

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/cloud/awsconfig"
	"secretfree/cloud/issuer"
	"secretfree/station/board"
)

// The key of an item in the table of claims. The item of a serial number has
// the partition key "serial:<serial>" and the sort key "claim", and names the
// claim.
const (
	attrDevice = "device-id" // partition key
	attrClaim  = "claim"     // sort key

	serialPrefix = "serial:"
	serialSort   = "claim"
	attrOf       = "of" // the partition key of the claim; attrOfClaim its sort key
	attrOfClaim  = "of-claim"
)

// TableName is the name of the table of claims of a SKU.
func TableName(sku string) string { return sku + "-iot-issuance" }

// DynamoDBConfig says where the table is. Credentials come from the SDK's usual
// places.
type DynamoDBConfig struct {
	Table    string
	Region   string
	Endpoint string // empty for AWS's own
}

// DynamoDB keeps claims in a table with the partition key device-id (S) and the
// sort key claim (S): an item for each, and one for its serial number. It needs
// dynamodb:PutItem, GetItem and Query on that table; All needs Scan. It is made
// by OpenDynamoDB.
type DynamoDB struct {
	client *dynamodb.Client
	table  string
}

// OpenDynamoDB makes the client. It does not call the table, so that an outage
// does not keep an issuer from starting.
func OpenDynamoDB(ctx context.Context, c DynamoDBConfig) (*DynamoDB, error) {
	if c.Table == "" || c.Region == "" {
		return nil, errors.New("claims in DynamoDB: it needs a table and a region")
	}
	loaded, _, err := awsconfig.Load(ctx, c.Region)
	if err != nil {
		return nil, fmt.Errorf("claims in DynamoDB: %w", err)
	}
	return &DynamoDB{table: c.Table, client: dynamodb.NewFromConfig(loaded, func(o *dynamodb.Options) {
		o.HTTPSignerV4 = awsconfig.Signer{}
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
	})}, nil
}

// Issuances is that of the interface Claims.
func (d *DynamoDB) Issuances(ctx context.Context, device board.DeviceID) ([]issuer.Issuance, error) {
	var out []issuer.Issuance
	pages := dynamodb.NewQueryPaginator(d.client, &dynamodb.QueryInput{
		TableName: aws.String(d.table), ConsistentRead: aws.Bool(true),
		KeyConditionExpression:    aws.String("#device = :device"),
		ExpressionAttributeNames:  map[string]string{"#device": attrDevice},
		ExpressionAttributeValues: map[string]types.AttributeValue{":device": text(device.String())},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("reading the claims of %s: %w", device, err)
		}
		for _, item := range page.Items {
			i, err := claimFromDynamo(item)
			if err != nil {
				return nil, err
			}
			out = append(out, i)
		}
	}
	return out, nil
}

// Create is that of the interface Claims. The claim and the item of its serial
// are written in one transaction.
func (d *DynamoDB) Create(ctx context.Context, issuance issuer.Issuance) (issuer.Issuance, error) {
	if err := issuance.Check(); err != nil || issuance.Version != 1 {
		return issuer.Issuance{}, fmt.Errorf("creating a claim: version %d: %w", issuance.Version, errors.Join(err))
	}
	c := issuance.Claim
	absent := aws.String("attribute_not_exists(#device)")
	names := map[string]string{"#device": attrDevice}
	_, err := d.client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{
		{Put: &types.Put{TableName: aws.String(d.table), Item: dynamoFromClaim(issuance), ConditionExpression: absent, ExpressionAttributeNames: names}},
		{Put: &types.Put{TableName: aws.String(d.table), ConditionExpression: absent, ExpressionAttributeNames: names, Item: map[string]types.AttributeValue{
			attrDevice: text(serialPrefix + c.Serial.String()), attrClaim: text(serialSort),
			attrOf: text(c.Device.String()), attrOfClaim: text(c.SortKey()),
		}}},
	}})
	if err == nil {
		return issuance, nil
	}
	// The condition may have failed on our own write, whose answer was lost;
	// any other error may hide a write that was done. What is stored tells.
	stored, readErr := d.read(ctx, c.Device.String(), c.SortKey())
	if readErr != nil {
		if errors.Is(readErr, issuer.ErrNoClaim) {
			return issuer.Issuance{}, fmt.Errorf("writing a claim: %w", err)
		}
		return issuer.Issuance{}, fmt.Errorf("writing a claim: %w", errors.Join(err, readErr))
	}
	return stored, nil
}

// Replace is that of the interface Claims.
func (d *DynamoDB) Replace(ctx context.Context, next issuer.Issuance) (issuer.Issuance, error) {
	if err := next.Check(); err != nil {
		return issuer.Issuance{}, fmt.Errorf("writing a claim: %w", err)
	}
	_, err := d.client.PutItem(ctx, &dynamodb.PutItemInput{
		TableName: aws.String(d.table), Item: dynamoFromClaim(next),
		ConditionExpression:      aws.String("#version = :version AND #serial = :serial"),
		ExpressionAttributeNames: map[string]string{"#version": "version", "#serial": "serial"},
		ExpressionAttributeValues: map[string]types.AttributeValue{
			":version": number(next.Version - 1), ":serial": text(next.Claim.Serial.String()),
		},
	})
	if err == nil {
		return next, nil
	}
	stored, readErr := d.read(ctx, next.Claim.Device.String(), next.Claim.SortKey())
	switch {
	case readErr != nil:
		return issuer.Issuance{}, fmt.Errorf("writing a claim: %w", errors.Join(err, readErr))
	case stored.Version < next.Version: // it was not applied
		return issuer.Issuance{}, fmt.Errorf("writing a claim: %w", err)
	}
	return stored, nil
}

// Serial is that of the interface Claims.
func (d *DynamoDB) Serial(ctx context.Context, serial issuer.Serial) (issuer.Issuance, error) {
	item, err := d.get(ctx, serialPrefix+serial.String(), serialSort)
	if err != nil {
		return issuer.Issuance{}, err
	}
	i, err := d.read(ctx, textOf(item, attrOf), textOf(item, attrOfClaim))
	if err == nil && i.Claim.Serial != serial {
		err = fmt.Errorf("%w: the item of serial %s names the claim %s", issuer.ErrBadClaim, serial, i.Claim.ID())
	}
	return i, err
}

// All is that of the interface Claims. It needs dynamodb:Scan.
func (d *DynamoDB) All(ctx context.Context) iter.Seq2[issuer.Issuance, error] {
	return func(yield func(issuer.Issuance, error) bool) {
		pages := dynamodb.NewScanPaginator(d.client, &dynamodb.ScanInput{TableName: aws.String(d.table), ConsistentRead: aws.Bool(true)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				yield(issuer.Issuance{}, fmt.Errorf("listing the claims: %w", err))
				return
			}
			for _, item := range page.Items {
				if strings.HasPrefix(textOf(item, attrDevice), serialPrefix) {
					continue
				}
				if !yield(claimFromDynamo(item)) {
					return
				}
			}
		}
	}
}

func (d *DynamoDB) get(ctx context.Context, device, claim string) (map[string]types.AttributeValue, error) {
	out, err := d.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: aws.String(d.table), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{attrDevice: text(device), attrClaim: text(claim)},
	})
	if err != nil {
		return nil, fmt.Errorf("reading a claim: %w", err)
	}
	if len(out.Item) == 0 {
		return nil, fmt.Errorf("%w: %s/%s", issuer.ErrNoClaim, device, claim)
	}
	return out.Item, nil
}

func (d *DynamoDB) read(ctx context.Context, device, claim string) (issuer.Issuance, error) {
	item, err := d.get(ctx, device, claim)
	if err != nil {
		return issuer.Issuance{}, err
	}
	return claimFromDynamo(item)
}

func text(v string) types.AttributeValue { return &types.AttributeValueMemberS{Value: v} }

func number(v int) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.Itoa(v)}
}

func textOf(item map[string]types.AttributeValue, name string) string {
	if v, ok := item[name].(*types.AttributeValueMemberS); ok {
		return v.Value
	}
	return ""
}

// texts and numbers of an item, by the names of its attributes.
func (s *storedClaim) texts() map[string]*string {
	return map[string]*string{
		attrDevice: &s.Device, attrClaim: &s.Claim, "key-fingerprint": &s.Fingerprint, "ca": &s.CA, "serial": &s.Serial,
		"not-before": &s.NotBefore, "not-after": &s.NotAfter, "organization": &s.Org, "alternative-name": &s.AltName, "created": &s.Created, "challenge": &s.Challenge,
		"state": &s.State, "memo": &s.CAState, "certificate": &s.Certificate, "certificate-chain": &s.Chain,
		"activated": &s.Activated, "revoked": &s.Revoked, "reason": &s.Reason,
	}
}

func (s *storedClaim) numbers() map[string]*int {
	return map[string]*int{"version": &s.Version, "generation": &s.Generation, "epoch": &s.Epoch}
}

func dynamoFromClaim(i issuer.Issuance) map[string]types.AttributeValue {
	s := storeIssuance(i)
	item := map[string]types.AttributeValue{}
	for name, value := range s.texts() {
		if *value != "" {
			item[name] = text(*value)
		}
	}
	for name, value := range s.numbers() {
		item[name] = number(*value)
	}
	return item
}

// claimFromDynamo reads an item. Attributes of other names are let pass: global
// tables add some.
func claimFromDynamo(item map[string]types.AttributeValue) (issuer.Issuance, error) {
	var s storedClaim
	bad := func(name string) error {
		return fmt.Errorf("%w: %.80q/%.100q: the attribute %s is not of its type", issuer.ErrBadClaim, textOf(item, attrDevice), textOf(item, attrClaim), name)
	}
	for name, to := range s.texts() {
		switch v := item[name].(type) {
		case nil:
		case *types.AttributeValueMemberS:
			*to = v.Value
		default:
			return issuer.Issuance{}, bad(name)
		}
	}
	for name, to := range s.numbers() {
		v, ok := item[name].(*types.AttributeValueMemberN)
		if !ok {
			return issuer.Issuance{}, bad(name)
		}
		var err error
		if *to, err = strconv.Atoi(v.Value); err != nil {
			return issuer.Issuance{}, bad(name)
		}
	}
	return s.load()
}
