package cloud

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"secretfree/station/board"
)

// putObject writes the public key if nothing is there. If something is, perhaps
// by an earlier attempt whose answer was lost, its bytes are compared.
func (a *AWS) putObject(ctx context.Context, r board.Record) error {
	name, content := objectName(r.Device, r.Fingerprint()), r.Key.PEM()
	_, err := a.s3.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(a.config.Bucket), Key: aws.String(name), Body: bytes.NewReader(content),
		ContentType:       aws.String("application/x-pem-file"),
		IfNoneMatch:       aws.String("*"),
		ChecksumAlgorithm: s3types.ChecksumAlgorithmSha256,
	})
	if err == nil {
		return nil
	}
	if status(err) != http.StatusPreconditionFailed {
		return a.fault("writing s3://"+a.config.Bucket+"/"+name, err)
	}
	stored, err := a.s3.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(a.config.Bucket), Key: aws.String(name)})
	if err != nil {
		return a.fault("reading s3://"+a.config.Bucket+"/"+name+", which is there already", err)
	}
	defer stored.Body.Close()
	got, err := io.ReadAll(io.LimitReader(stored.Body, int64(len(content))+1))
	if err != nil {
		return a.fault("reading s3://"+a.config.Bucket+"/"+name+", which is there already", err)
	}
	if !bytes.Equal(got, content) {
		return damaged(r.Device, "s3://%s/%s is not the key that its name says", a.config.Bucket, name)
	}
	return nil
}

// status is the HTTP status of an answer; 0 if there was none.
func status(err error) int {
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return response.HTTPStatusCode()
	}
	return 0
}
