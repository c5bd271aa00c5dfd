package pki

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

// Clients gives what is called of AWS in a region. It makes no call by itself.
type Clients interface {
	PCA(ctx context.Context, region string) (PCA, error)
	IoT(ctx context.Context, region string) (IoT, error)
	S3(ctx context.Context, region string) (Objects, error)
}

const (
	callAttempts = 3
	callTimeout  = 20 * time.Second // of one attempt
)

// AWS makes clients of AWS itself. The endpoints are URLs of private endpoints
// or test servers; empty for AWS's own. A run needs
// acm-pca:GetCertificateAuthorityCsr, GetCertificateAuthorityCertificate and
// ImportCertificateAuthorityCertificate on each CA, for a CA that is registered
// with IoT Core also acm-pca:IssueCertificate and GetCertificate, and
// iot:GetRegistrationCode, RegisterCACertificate and DescribeCACertificate; for
// a bucket s3:PutObject, s3:GetObject and s3:ListBucket (without which what is
// not there looks forbidden).
type AWS struct {
	PCAEndpoint, IoTEndpoint, S3Endpoint string
}

func load(ctx context.Context, region string) (aws.Config, error) {
	c, err := config.LoadDefaultConfig(ctx,
		config.WithRegion(region),
		config.WithRetryMode(aws.RetryModeStandard),
		config.WithRetryMaxAttempts(callAttempts),
		config.WithLogger(logging.Nop{}), // what matters comes back as an error
		// Of the SDK's own kind: AWS_CA_BUNDLE works with no other.
		config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(callTimeout)))
	if err != nil {
		return c, fmt.Errorf("loading the AWS configuration: %w", err)
	}
	return c, nil
}

func endpoint(url string) *string {
	if url == "" {
		return nil
	}
	return aws.String(url)
}

// PCA is that of Clients.
func (a AWS) PCA(ctx context.Context, region string) (PCA, error) {
	c, err := load(ctx, region)
	return acmpca.NewFromConfig(c, func(o *acmpca.Options) { o.BaseEndpoint = endpoint(a.PCAEndpoint) }), err
}

// IoT is that of Clients.
func (a AWS) IoT(ctx context.Context, region string) (IoT, error) {
	c, err := load(ctx, region)
	return iot.NewFromConfig(c, func(o *iot.Options) { o.BaseEndpoint = endpoint(a.IoTEndpoint) }), err
}

// S3 is that of Clients.
func (a AWS) S3(ctx context.Context, region string) (Objects, error) {
	c, err := load(ctx, region)
	return s3.NewFromConfig(c, func(o *s3.Options) {
		if a.S3Endpoint != "" {
			o.BaseEndpoint = aws.String(a.S3Endpoint)
			o.UsePathStyle = true
		}
	}), err
}
