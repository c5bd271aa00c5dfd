package ca

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	"github.com/aws/aws-sdk-go-v2/service/iot/types"

	"secretfree/cloud/awsconfig"
	"secretfree/cloud/issuer"
	"secretfree/station/board"
)

// What AWS IoT Core holds already, and is not what is to be registered.
var (
	errThingConflict     = errors.New("AWS IoT Core has a thing of this name with another type or other attributes")
	errCertificateStatus = errors.New("the certificate was revoked in AWS IoT Core")
)

// endpointFor is how long the answer of AWS is used for where devices connect.
const endpointFor = time.Hour

// IoTRegistrarConfig says how certificates are registered with AWS IoT Core. It
// needs iot:RegisterCertificate or iot:RegisterCertificateWithoutCA on *;
// iot:DescribeCertificate and iot:UpdateCertificate on cert/*; iot:CreateThing,
// iot:DescribeThing and iot:AttachThingPrincipal on thing/* (the last on cert/*
// too); iot:AddThingToThingGroup on thing/* and on the group; iot:AttachPolicy
// on cert/* where there is a Policy; and iot:DescribeEndpoint on *.
type IoTRegistrarConfig struct {
	// CARegistered says that the issuing CA is registered with AWS IoT Core in
	// this region.
	CARegistered bool
	ThingType    string            // of each device's thing; may be empty
	Attributes   map[string]string // of each device's thing; at most 3
	// ThingGroup is where each thing is added; a policy on it holds for all.
	// Policy is attached to each certificate by itself, which AWS lets happen
	// 15 times a second. Each may be empty, but a device may do nothing without
	// a policy.
	ThingGroup string
	Policy     string
	// JITP says that AWS IoT Core registers certificates by itself, when a
	// device first connects, by the provisioning template of the CA. Then
	// Register does nothing, and Deactivate also registers a certificate that
	// was never seen, as revoked.
	JITP     bool
	Region   string // empty: the SDK's usual places
	Endpoint string // of the API; empty for AWS's own

	test awsTest
}

// What AWS IoT Core takes in names, and in attributes and their values, besides
// letters and digits.
const (
	iotName      = ":_-"
	iotAttribute = "_.,@/:#=[]-"
)

// iotTakes reports whether text is 1 to most of letters, digits and others. A
// regular expression of this kind takes 30 ms to compile, at every start.
func iotTakes(text, others string, most int) bool {
	return len(text) >= 1 && len(text) <= most && !strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(others, r)
	})
}

// IoTRegistrar makes certificates known to AWS IoT Core, with a thing named
// after the device. Any number of callers may use it at once. It is made by
// OpenIoTRegistrar.
type IoTRegistrar struct {
	client *iot.Client
	config IoTRegistrarConfig

	mu       sync.Mutex // covers all below
	endpoint string
	asked    time.Time // when AWS last answered
}

// OpenIoTRegistrar checks the configuration and makes the client. It makes no
// call.
func OpenIoTRegistrar(ctx context.Context, c IoTRegistrarConfig) (*IoTRegistrar, error) {
	for what, name := range map[string]string{"thing type": c.ThingType, "thing group": c.ThingGroup, "policy": c.Policy} {
		if name != "" && !iotTakes(name, iotName, 128) {
			return nil, fmt.Errorf("registrar in AWS IoT Core: the %s %.140q is not 1 to 128 of a-z, A-Z, 0-9, :, _ and -", what, name)
		}
	}
	if len(c.Attributes) > 3 {
		return nil, fmt.Errorf("registrar in AWS IoT Core: %d attributes, at most 3", len(c.Attributes))
	}
	for key, value := range c.Attributes {
		if !iotTakes(key, iotAttribute, 128) || !iotTakes(value, iotAttribute, 800) {
			return nil, fmt.Errorf("registrar in AWS IoT Core: the attribute %.140q = %.140q has characters that AWS does not take", key, value)
		}
	}
	client, err := IoTCoreConfig{Region: c.Region, Endpoint: c.Endpoint, test: c.test}.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("registrar in AWS IoT Core: %w", err)
	}
	return &IoTRegistrar{client: client, config: c}, nil
}

// Register is that of the interface Registrar. A certificate without a chain is
// one that AWS IoT Core made itself. One that was revoked stays revoked: the
// error wraps errCertificateStatus.
func (r *IoTRegistrar) Register(ctx context.Context, device board.DeviceID, certificate issuer.Certificate) error {
	if r.config.JITP {
		return nil
	}
	arn, err := r.known(ctx, certificate, types.CertificateStatusInactive)
	if err != nil {
		return err
	}
	if err := r.thing(ctx, device); err != nil {
		return err
	}
	if _, err := r.client.AttachThingPrincipal(ctx, &iot.AttachThingPrincipalInput{
		ThingName: aws.String(device.String()), Principal: aws.String(arn),
	}); err != nil {
		return awsconfig.Fault("attaching a certificate to its thing in AWS IoT Core", err)
	}
	if r.config.ThingGroup != "" {
		if _, err := r.client.AddThingToThingGroup(ctx, &iot.AddThingToThingGroupInput{
			ThingGroupName: aws.String(r.config.ThingGroup), ThingName: aws.String(device.String()),
		}); err != nil {
			return awsconfig.Fault("adding a thing to the thing group "+r.config.ThingGroup+" in AWS IoT Core", err)
		}
	}
	if r.config.Policy != "" {
		if _, err := r.client.AttachPolicy(ctx, &iot.AttachPolicyInput{
			PolicyName: aws.String(r.config.Policy), Target: aws.String(arn),
		}); err != nil {
			return awsconfig.Fault("attaching the policy "+r.config.Policy+" in AWS IoT Core", err)
		}
	}
	return setStatus(ctx, r.client, certificateID(certificate.Leaf), types.CertificateStatusActive)
}

// known sees to it that AWS IoT Core holds a certificate, and returns its ARN.
// A new one gets the status.
func (r *IoTRegistrar) known(ctx context.Context, certificate issuer.Certificate, status types.CertificateStatus) (arn string, err error) {
	var out *string
	switch text := aws.String(string(certificate.LeafPEM())); {
	case len(certificate.Chain) == 0:
		return r.held(ctx, certificate)
	case r.config.CARegistered:
		issuing := issuer.Certificate{Leaf: certificate.Chain[0]}.LeafPEM()
		var registered *iot.RegisterCertificateOutput
		registered, err = r.client.RegisterCertificate(ctx, &iot.RegisterCertificateInput{
			CertificatePem: text, CaCertificatePem: aws.String(string(issuing)), Status: status,
		})
		if err == nil {
			out = registered.CertificateArn
		}
	default:
		var registered *iot.RegisterCertificateWithoutCAOutput
		registered, err = r.client.RegisterCertificateWithoutCA(ctx, &iot.RegisterCertificateWithoutCAInput{
			CertificatePem: text, Status: status,
		})
		if err == nil {
			out = registered.CertificateArn
		}
	}
	if _, there := errors.AsType[*types.ResourceAlreadyExistsException](err); there {
		return r.held(ctx, certificate)
	}
	if err != nil {
		return "", awsconfig.Fault("registering a certificate with AWS IoT Core", err)
	}
	return aws.ToString(out), nil
}

// held is known for a certificate that must be there.
func (r *IoTRegistrar) held(ctx context.Context, certificate issuer.Certificate) (arn string, err error) {
	stored, err := describeCertificate(ctx, r.client, certificateID(certificate.Leaf))
	if err != nil {
		return "", err
	}
	if !bytes.Equal(stored.leaf, certificate.Leaf) {
		return "", errors.New("AWS IoT Core holds another certificate under the same id")
	}
	if stored.status != types.CertificateStatusActive && stored.status != types.CertificateStatusInactive {
		return "", fmt.Errorf("%w: it is %s", errCertificateStatus, stored.status)
	}
	return stored.arn, nil
}

// thing sees to it that the device's thing is there as configured. Attributes
// that others gave it stay.
func (r *IoTRegistrar) thing(ctx context.Context, device board.DeviceID) error {
	name := aws.String(device.String())
	in := &iot.CreateThingInput{ThingName: name}
	if r.config.ThingType != "" {
		in.ThingTypeName = aws.String(r.config.ThingType)
	}
	if len(r.config.Attributes) > 0 {
		in.AttributePayload = &types.AttributePayload{Attributes: r.config.Attributes}
	}
	_, err := r.client.CreateThing(ctx, in)
	if err == nil {
		return nil
	}
	if _, there := errors.AsType[*types.ResourceAlreadyExistsException](err); !there {
		return awsconfig.Fault("making a thing in AWS IoT Core", err)
	}
	thing, err := r.client.DescribeThing(ctx, &iot.DescribeThingInput{ThingName: name})
	if err != nil {
		return awsconfig.Fault("looking up a thing in AWS IoT Core", err)
	}
	if got := aws.ToString(thing.ThingTypeName); got != r.config.ThingType {
		return fmt.Errorf("%w: thing %s has the type %q, want %q", errThingConflict, device, got, r.config.ThingType)
	}
	for key, value := range r.config.Attributes {
		if got := thing.Attributes[key]; got != value {
			return fmt.Errorf("%w: thing %s has %s = %q, want %q", errThingConflict, device, key, got, value)
		}
	}
	return nil
}

// Deactivate is that of the interface Registrar. The certificate is then
// revoked for good; its thing stays.
func (r *IoTRegistrar) Deactivate(ctx context.Context, _ board.DeviceID, certificate issuer.Certificate) error {
	if r.config.JITP {
		if _, err := r.known(ctx, certificate, types.CertificateStatusRevoked); err != nil && !errors.Is(err, errCertificateStatus) {
			return err
		}
	}
	return setStatus(ctx, r.client, certificateID(certificate.Leaf), types.CertificateStatusRevoked)
}

// DataEndpoint is the host name where devices connect. AWS is asked at most
// once an hour, and what it said before is used when it does not answer.
func (r *IoTRegistrar) DataEndpoint(ctx context.Context) (string, error) {
	r.mu.Lock()
	known, fresh := r.endpoint, time.Since(r.asked) < endpointFor
	r.mu.Unlock()
	if known != "" && fresh {
		return known, nil
	}
	out, err := r.client.DescribeEndpoint(ctx, &iot.DescribeEndpointInput{EndpointType: aws.String("iot:Data-ATS")})
	if err == nil && aws.ToString(out.EndpointAddress) == "" {
		err = errors.New("the answer is empty")
	}
	if err != nil {
		if known != "" {
			return known, nil
		}
		return "", awsconfig.Fault("asking AWS IoT Core where devices connect", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endpoint, r.asked = *out.EndpointAddress, time.Now()
	return r.endpoint, nil
}
