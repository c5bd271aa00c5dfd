package config

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"

	"secretfree/cloud"
	"secretfree/station/board"
)

// Registry is the table [registry] of both daemons.
type Registry struct {
	Kind string `toml:"kind"` // "aws" or "dir"

	Dir string `toml:"dir"` // of kind "dir": the folder

	// Of kind "aws".
	Table            string `toml:"table"` // empty: <sku>-iot-provisioning-secretfree
	Bucket           string `toml:"bucket"`
	Region           string `toml:"region"`            // empty: as the AWS SDK finds it
	DynamoDBEndpoint string `toml:"dynamodb_endpoint"` // for tests and private endpoints
	S3Endpoint       string `toml:"s3_endpoint"`

	PubkeyFormat string `toml:"pubkey_format"` // "base64-pem" (default) or "pem"
}

// Backend is a registry: a sink and an archive for a station, and what an
// issuer looks devices up in.
type Backend interface {
	Put(ctx context.Context, s board.Sealed) error
	PutBatch(ctx context.Context, records []board.Sealed) []error
	Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error)
	Archive
	Listing
	Operation
}

// Listing gives everything that a registry holds; see package cloud.
type Listing interface {
	Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error]
	Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error]
	Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error]
}

// Operation is what operators do to a registry, and no daemon; see package
// cloud.
type Operation interface {
	ChangeState(ctx context.Context, device board.DeviceID, c cloud.Change) (board.Enrolment, error)
	History(ctx context.Context, device board.DeviceID) ([]cloud.Event, error)
	Loaded(ctx context.Context) ([]cloud.Loaded, error)
	Import(ctx context.Context, l cloud.Loaded, s board.Sealed) error
}

// Archive keeps the journals of stations; see package cloud.
type Archive interface {
	PutSegment(ctx context.Context, origin string, first, last uint64, segment []byte) error
	PutCheckpoint(ctx context.Context, origin string, size uint64, checkpoint []byte) error
	// Segment returns fs.ErrNotExist if the archive does not have it.
	Segment(ctx context.Context, origin string, first uint64) ([]byte, error)
}

// Check reports what is missing or contradictory.
func (r Registry) Check(f *File) error {
	switch cloud.PubkeyFormat(r.PubkeyFormat) {
	case "", cloud.PubkeyBase64PEM, cloud.PubkeyPEM:
	default:
		return f.Errorf("registry.pubkey_format", fmt.Sprintf("Write %q or %q.", cloud.PubkeyBase64PEM, cloud.PubkeyPEM),
			"registry.pubkey_format is %q", r.PubkeyFormat)
	}
	forbid := func(other string, keys map[string]string) error {
		for key, value := range keys {
			if value != "" {
				return f.Errorf("registry."+key, fmt.Sprintf("Remove it, or write kind = %q.", other),
					"registry.%s does not go with registry.kind = %q", key, r.Kind)
			}
		}
		return nil
	}
	switch r.Kind {
	case "dir":
		if !filepath.IsAbs(r.Dir) {
			return f.Errorf("registry.dir", "Write the absolute path of the folder.", "registry.dir is %q", r.Dir)
		}
		return forbid("aws", map[string]string{"table": r.Table, "bucket": r.Bucket, "region": r.Region,
			"dynamodb_endpoint": r.DynamoDBEndpoint, "s3_endpoint": r.S3Endpoint})
	case "aws":
		if r.Bucket == "" {
			return f.Errorf("registry.bucket", "Write the name of the S3 bucket for public keys.", "registry.bucket is missing")
		}
		if !isBucket(r.Bucket) {
			return f.Errorf("registry.bucket", "Write the name of the bucket alone: 3 to 63 of a-z, 0-9, . and -.", "registry.bucket is %q", r.Bucket)
		}
		if err := CheckDynamoDB(f, "registry", r.Table, r.Region, r.DynamoDBEndpoint); err != nil {
			return err
		}
		if err := checkEndpoint(f, "registry.s3_endpoint", r.S3Endpoint); err != nil {
			return err
		}
		return forbid("dir", map[string]string{"dir": r.Dir})
	case "":
		return f.Errorf("registry.kind", `Add a table [registry] with kind = "aws" or kind = "dir".`, "registry.kind is missing")
	}
	return f.Errorf("registry.kind", `Write "aws" or "dir".`, "registry.kind is %q", r.Kind)
}

// Open makes the back end of a Registry that passed Check. It calls nothing
// outside this machine.
func (r Registry) Open(ctx context.Context, sku string) (Backend, error) {
	format := cloud.PubkeyFormat(r.PubkeyFormat)
	if r.Kind == "dir" {
		dir, err := cloud.OpenDir(cloud.DirConfig{Path: r.Dir, PubkeyFormat: format})
		if err != nil {
			return nil, err
		}
		return hinted{dir, r.Dir}, nil
	}
	if r.Kind != "aws" {
		return nil, fmt.Errorf("registry.kind is %q, and there is no registry to be reached", r.Kind)
	}
	table := r.Table
	if table == "" {
		table = cloud.Table(sku)
	}
	return cloud.NewAWS(ctx, cloud.AWSConfig{Table: table, Bucket: r.Bucket, Region: r.Region,
		DynamoDBEndpoint: r.DynamoDBEndpoint, S3Endpoint: r.S3Endpoint, PubkeyFormat: format})
}

// hinted adds the command that initialises a folder to the error which says
// that it needs to be.
type hinted struct {
	Backend
	dir string
}

func (h hinted) Put(ctx context.Context, s board.Sealed) error {
	return h.hint(h.Backend.Put(ctx, s))
}

func (h hinted) PutBatch(ctx context.Context, records []board.Sealed) []error {
	errs := h.Backend.PutBatch(ctx, records)
	for i := range errs {
		errs[i] = h.hint(errs[i])
	}
	return errs
}

func (h hinted) Lookup(ctx context.Context, device board.DeviceID) (board.Enrolment, error) {
	enrolment, err := h.Backend.Lookup(ctx, device)
	return enrolment, h.hint(err)
}

func (h hinted) Loaded(ctx context.Context) ([]cloud.Loaded, error) {
	all, err := h.Backend.Loaded(ctx)
	return all, h.hint(err)
}

func (h hinted) hint(err error) error {
	if errors.Is(err, cloud.ErrNoRegistry) {
		return fmt.Errorf("%w (stationctl registry init %s)", err, h.dir)
	}
	return err
}
