package config

import (
	"context"
	"fmt"
	"path/filepath"

	"secretfree/cloud"
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

// Open opens the registry of a Registry that passed Check: exactly one of aws
// and dir is set, by kind. Open makes no call outside this machine. Errors of
// dir that wrap cloud.ErrNoRegistry name the command that initialises a folder.
func (r Registry) Open(ctx context.Context, sku string) (aws *cloud.AWS, dir *cloud.Dir, err error) {
	format := cloud.PubkeyFormat(r.PubkeyFormat)
	switch r.Kind {
	case "dir":
		dir, err = cloud.OpenDir(cloud.DirConfig{Path: r.Dir, PubkeyFormat: format, InitHint: "stationctl registry init " + r.Dir})
		return nil, dir, err
	case "aws":
		table := r.Table
		if table == "" {
			table = cloud.Table(sku)
		}
		aws, err = cloud.NewAWS(ctx, cloud.AWSConfig{Table: table, Bucket: r.Bucket, Region: r.Region,
			DynamoDBEndpoint: r.DynamoDBEndpoint, S3Endpoint: r.S3Endpoint, PubkeyFormat: format})
		return aws, nil, err
	}
	return nil, nil, fmt.Errorf("registry.kind is %q, and there is no registry to be reached", r.Kind)
}
