package ca

import "github.com/aws/aws-sdk-go-v2/aws"

// awsTest is what only tests set in a configuration.
type awsTest struct {
	http aws.HTTPClient // nil means the SDK's own
}
