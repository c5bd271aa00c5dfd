// Package awsconfig loads the AWS configuration of a client, signs its requests
// and puts errors of AWS into words that may be shown.
package awsconfig

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
)

// The SDK's own retries are few: the caller asks again.
const (
	attempts = 3
	timeout  = 5 * time.Second // of one attempt
)

// maxText caps what is shown of an error of AWS, in bytes.
const maxText = 300

// Load is what all clients of AWS are made with. An empty region means the
// SDK's usual places. Credentials come from those too, and are looked for again
// when they are missing, have expired, or were refused in an answer; a client
// must also take Signer for its signer. It makes no call, so that an outage
// does not keep an issuer from starting.
func Load(ctx context.Context, region string) (aws.Config, *aws.CredentialsCache, error) {
	load := func(ctx context.Context) (aws.Config, error) {
		loaded, err := config.LoadDefaultConfig(ctx,
			config.WithRegion(region),
			config.WithRetryMode(aws.RetryModeStandard),
			config.WithRetryMaxAttempts(attempts),
			config.WithLogger(logging.Nop{}), // what matters comes back as an error
			// Of the SDK's own kind: AWS_CA_BUNDLE works with no other.
			config.WithHTTPClient(awshttp.NewBuildableClient().WithTimeout(timeout)))
		if err != nil {
			return loaded, fmt.Errorf("loading the AWS configuration: %w", err)
		}
		return loaded, nil
	}
	loaded, err := load(ctx)
	if err != nil {
		return aws.Config{}, nil, err
	}
	if loaded.Region == "" {
		return aws.Config{}, nil, errors.New("no AWS region: set it in the configuration, or in AWS_REGION")
	}
	// The SDK by itself reads a credentials file once, and settles at the start
	// where credentials come from.
	credentials := aws.NewCredentialsCache(aws.CredentialsProviderFunc(func(ctx context.Context) (aws.Credentials, error) {
		loaded, err := load(ctx)
		if err != nil {
			return aws.Credentials{}, err
		}
		return loaded.Credentials.Retrieve(ctx)
	}))
	loaded.Credentials = credentials
	loaded.APIOptions = append(loaded.APIOptions, func(stack *middleware.Stack) error {
		return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("ForgetRefusedCredentials",
			func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
				out, metadata, err := next.HandleDeserialize(ctx, in)
				if refusedCredentials(err) {
					credentials.Invalidate()
				}
				return out, metadata, err
			}), middleware.Before)
	})
	return loaded, credentials, nil
}

// Signer signs requests. The SDK's own keeps what it derives from a secret
// under the name of the access key, and would go on with a secret that was
// wrong.
type Signer struct{}

func (Signer) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, options ...func(*v4.SignerOptions)) error {
	return v4.NewSigner().SignHTTP(ctx, c, r, hash, service, region, at, options...)
}

// refusedCredentials reports whether AWS answered that it does not take the
// credentials, and not only that they do not permit it.
func refusedCredentials(err error) bool {
	return slices.Contains([]string{
		"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired",
		"UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "InvalidToken",
		"MissingAuthenticationToken", "MissingAuthenticationTokenException",
		"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature",
	}, Code(err))
}

// Code is the code of an error that AWS answered, or empty.
func Code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// callError is an error of a call to AWS in a text that may be shown: one line,
// not long, and no header of the request.
type callError struct {
	doing, text string
	err         error
}

func (e *callError) Error() string { return e.doing + ": " + e.text }
func (e *callError) Unwrap() error { return e.err }

// Fault wraps an error with what was being done.
func Fault(doing string, err error) error {
	text := err.Error()
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		text = api.ErrorCode()
		if !strings.Contains(text, "Signature") {
			// The message of a signature error quotes the request's headers,
			// the session token among them.
			text += ": " + api.ErrorMessage()
		}
	}
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return &callError{doing, text, err}
}
