package pki

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// latest is the newest CRL of an authority that the journal knows, or nil.
func (x *Ceremony) latest(authority string) *CRL { return latest(x.journal.entries, authority) }

func latest(entries []Entry, authority string) *CRL {
	for i := len(entries) - 1; i >= 0; i-- {
		if e := entries[i]; e.CRL != nil && strings.HasPrefix(e.Step, "crl/"+authority+"/") {
			return e.CRL
		}
	}
	return nil
}

func (x *Ceremony) revokedBy(authority string) []Revocation {
	var revoked []Revocation
	for _, e := range x.journal.entries {
		if e.Revoked != nil && e.Revoked.By == authority {
			revoked = append(revoked, *e.Revoked)
		}
	}
	return revoked
}

func (x *Ceremony) crlDue(authority string) bool {
	crl := x.latest(authority)
	return crl == nil || !time.Now().Before(crl.NextUpdate) ||
		slices.ContainsFunc(x.revokedBy(authority), func(r Revocation) bool { return !slices.Contains(crl.Serials, r.Serial) })
}

func crlFile(authority string, number uint64) string {
	return fmt.Sprintf("crl/%s-%d.crl", authority, number)
}

// crlStep is the next list of an authority.
func (x *Ceremony) crlStep(authority string) Step {
	number := uint64(1)
	if crl := x.latest(authority); crl != nil {
		number = crl.Number + 1
	}
	revoked := x.revokedBy(authority)
	step, file := fmt.Sprintf("crl/%s/%d", authority, number), crlFile(authority, number)
	return Step{ID: step, Key: authority, Does: fmt.Sprintf("sign list %d of what the %s revoked (%d certificates), good for %s; write %s", number, authority, len(revoked), days(x.c.Plan.CRL.Validity), file),
		run: func(context.Context) error {
			by, err := x.authority(authority)
			if err != nil {
				return err
			}
			der, err := readFile(x.path(file))
			found := err == nil
			if errors.Is(err, fs.ErrNotExist) {
				signer, err := x.c.Keys.Open(authority)
				if err != nil {
					return err
				}
				if der, err = signCRL(number, revoked, by, signer, x.c.Plan.CRL.Validity, time.Now()); err != nil {
					return fmt.Errorf("signing %s: %w", file, err)
				}
			} else if err != nil {
				return err
			}
			crl, err := parseCRL(der, by)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			// One that was found may be older than the last revocations, and is
			// then followed by another; never may it have others.
			if crl.Number != number || slices.ContainsFunc(crl.Serials, func(serial string) bool {
				return !slices.ContainsFunc(revoked, func(r Revocation) bool { return r.Serial == serial })
			}) {
				return fmt.Errorf("%s is there already, and is another: %w", file, errConflict)
			}
			if err := makeDir(x.path("crl")); err != nil {
				return err
			}
			if err := x.durable("file "+file, func() error { return writeNew(x.path(file), der) }); err != nil {
				return err
			}
			files, err := x.files(file)
			if err != nil {
				return err
			}
			return x.note(Entry{Step: step, Found: found, Files: files, CRL: crl})
		}}
}

// Objects is what is called of S3; *s3.Client has it.
type Objects interface {
	PutObject(context.Context, *s3.PutObjectInput, ...func(*s3.Options)) (*s3.PutObjectOutput, error)
	GetObject(context.Context, *s3.GetObjectInput, ...func(*s3.Options)) (*s3.GetObjectOutput, error)
}

// publishSteps are those of the lists that are not in the bucket yet, the ones
// that a run is still to sign among them.
func (x *Ceremony) publishSteps() []Step {
	p := x.c.Plan.CRL
	if p.Bucket == "" {
		return nil
	}
	var steps []Step
	for _, authority := range []string{RootKey, LineKey} {
		var last uint64
		if crl := x.latest(authority); crl != nil {
			last = crl.Number
		}
		if x.crlDue(authority) {
			last++
		}
		for number := uint64(1); number <= last; number++ {
			id := fmt.Sprintf("publish/%s/%d", authority, number)
			if x.journal.made(id) != nil {
				continue
			}
			object, stable := fmt.Sprintf("%s%s-%d.crl", p.Prefix, authority, number), p.Prefix+authority+".crl"
			steps = append(steps, Step{ID: id, Does: fmt.Sprintf("put %s as s3://%s/%s, which must not be there, and as %s, which must not be newer", crlFile(authority, number), p.Bucket, object, stable),
				run: func(ctx context.Context) error { return x.publish(ctx, id, authority, number, object, stable) }})
		}
	}
	return steps
}

func (x *Ceremony) publish(ctx context.Context, id, authority string, number uint64, object, stable string) error {
	if x.c.Clients == nil {
		return errors.New("the plan has something in AWS, and there are no clients for it")
	}
	der, err := readFile(x.path(crlFile(authority, number)))
	if err != nil {
		return err
	}
	objects, err := x.c.Clients.S3(ctx, x.c.Plan.CRL.Region)
	if err != nil {
		return err
	}
	b := bucket{objects, x.c.Plan.CRL.Bucket}
	if err := b.put(ctx, object, der, ""); err != nil {
		if status(err) != http.StatusPreconditionFailed {
			return err
		}
		there, _, err := b.get(ctx, object)
		if err != nil {
			return err
		}
		if !bytes.Equal(there, der) {
			return fmt.Errorf("s3://%s/%s is there already, and is another: %w", b.name, object, errConflict)
		}
	}
	if err := x.point(ctx, b, authority, number, stable, der); err != nil {
		return err
	}
	return x.note(Entry{Step: id, AWS: map[string]string{"bucket": b.name, "object": object, "stable": stable, "sha256": digest(der)}})
}

// point makes the stable name stand for a list, unless for a newer one that is
// this folder's as well.
func (x *Ceremony) point(ctx context.Context, b bucket, authority string, number uint64, stable string, der []byte) error {
	by, err := x.authority(authority)
	if err != nil {
		return err
	}
	there, tag, err := b.get(ctx, stable)
	if err != nil || bytes.Equal(there, der) {
		return err
	}
	if there != nil {
		crl, err := parseCRL(there, by)
		if err != nil {
			return fmt.Errorf("s3://%s/%s: %w", b.name, stable, err)
		}
		switch {
		case crl.Number == number || crl.Number > x.latest(authority).Number:
			return fmt.Errorf("s3://%s/%s is list %d, which this folder did not sign: %w", b.name, stable, crl.Number, errConflict)
		case crl.Number > number:
			return nil
		}
	}
	err = b.put(ctx, stable, der, tag)
	if status(err) == http.StatusPreconditionFailed {
		// Perhaps by this very call, whose first answer was lost.
		if there, _, again := b.get(ctx, stable); again == nil && bytes.Equal(there, der) {
			return nil
		}
	}
	return err
}

// bucket is of S3, with the conditions that keep writers from undoing each
// other's work.
type bucket struct {
	Objects
	name string
}

// put writes an object: over the one with a tag, or if there is none.
func (b bucket) put(ctx context.Context, object string, data []byte, tag string) error {
	in := &s3.PutObjectInput{Bucket: aws.String(b.name), Key: aws.String(object), Body: bytes.NewReader(data),
		ContentType: aws.String("application/pkix-crl"), ChecksumAlgorithm: s3types.ChecksumAlgorithmSha256}
	if tag != "" {
		in.IfMatch = aws.String(tag)
	} else {
		in.IfNoneMatch = aws.String("*")
	}
	if _, err := b.PutObject(ctx, in); err != nil {
		return fmt.Errorf("writing s3://%s/%s: %w", b.name, object, err)
	}
	return nil
}

// get reads an object; nil if there is none.
func (b bucket) get(ctx context.Context, object string) (data []byte, tag string, err error) {
	out, err := b.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(b.name), Key: aws.String(object)})
	if _, ok := errors.AsType[*s3types.NoSuchKey](err); ok {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("reading s3://%s/%s: %w", b.name, object, err)
	}
	defer out.Body.Close()
	if data, err = io.ReadAll(io.LimitReader(out.Body, maxFile)); err != nil {
		return nil, "", fmt.Errorf("reading s3://%s/%s: %w", b.name, object, err)
	}
	return data, aws.ToString(out.ETag), nil
}

// status is the HTTP status of an answer; 0 if there was none.
func status(err error) int {
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return response.HTTPStatusCode()
	}
	return 0
}
