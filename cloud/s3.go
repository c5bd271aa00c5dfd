package cloud

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
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
	return a.create(ctx, a.s3, name, "application/x-pem-file", content, func(stored io.Reader) error {
		same, err := equal(stored, content)
		if err == nil && !same {
			err = damaged(r.Device, "s3://%s/%s is not the key that its name says", a.config.Bucket, name)
		}
		return err
	})
}

// create makes an object if there is none. Otherwise known is given what is
// there, and says what that means. A store that does not return the checksum of
// what it has stored is asked for the object.
func (a *AWS) create(ctx context.Context, client *s3.Client, name, contentType string, content []byte, known func(io.Reader) error) error {
	where := "s3://" + a.config.Bucket + "/" + name
	put, err := client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(a.config.Bucket), Key: aws.String(name), Body: bytes.NewReader(content),
		ContentType:       aws.String(contentType),
		IfNoneMatch:       aws.String("*"),
		ChecksumAlgorithm: s3types.ChecksumAlgorithmSha256,
	})
	doing := "reading " + where + ", which is there already"
	switch {
	case err == nil:
		// S3 computes it from what it has received, and answers once that is
		// stored.
		sum := sha256.Sum256(content)
		if aws.ToString(put.ChecksumSHA256) == base64.StdEncoding.EncodeToString(sum[:]) {
			return nil
		}
		doing = "reading " + where + " back"
		known = func(stored io.Reader) error {
			same, err := equal(stored, content)
			if err == nil && !same {
				err = a.fault(doing, errNotHeld)
			}
			return err
		}
	case status(err) != http.StatusPreconditionFailed:
		return a.fault("writing "+where, err)
	}
	stored, getErr := a.getPatiently(ctx, client, name)
	if _, missing := errors.AsType[*s3types.NoSuchKey](getErr); missing && err == nil {
		return a.fault(doing, errNotHeld)
	}
	if getErr != nil {
		return a.fault(doing, getErr)
	}
	defer stored.Body.Close()
	body := &faulty{r: stored.Body}
	err = known(body)
	if body.err != nil {
		return a.fault(doing, body.err)
	}
	return err
}

// getPatiently reads again while AWS asks to slow down: to write again, only to
// be refused, would cost it more. The SDK waits in between.
func (a *AWS) getPatiently(ctx context.Context, client *s3.Client, name string) (out *s3.GetObjectOutput, err error) {
	for range busyTries {
		out, err = client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(a.config.Bucket), Key: aws.String(name)})
		if err == nil || !isBusy(a.fault("reading "+name, err)) {
			break
		}
	}
	return out, err
}

// faulty remembers the error that ended its reader too early.
type faulty struct {
	r   io.Reader
	err error
}

func (f *faulty) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// status is the HTTP status of an answer; 0 if there was none.
func status(err error) int {
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return response.HTTPStatusCode()
	}
	return 0
}
