package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
)

type crl struct {
	Config string `name:"config" default:"/etc/secretfree/issuerd.toml" placeholder:"FILE" help:"The issuer's configuration (${default})."`
	CA     string `name:"ca" placeholder:"NAME" help:"The name of the CA; the default is that of [ca]."`
	Out    string `name:"out" required:"" placeholder:"FILE" help:"The file for the list, in DER. An existing file is replaced atomically."`
}

func (c *crl) Run(ctx context.Context, out *cli.Output) error {
	config, err := issuerd.Load(c.Config)
	if err != nil {
		return err
	}
	der, incomplete := config.CRL(ctx, c.CA)
	if der == nil {
		return incomplete
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return fmt.Errorf("reading the list that was made: %w", err)
	}
	if err := replaceFile(c.Out, der); err != nil {
		return fmt.Errorf("writing the list: %w", err)
	}
	n := len(list.RevokedCertificateEntries)
	return errors.Join(incomplete, out.Print(struct {
		Out        string `json:"out"`
		Number     string `json:"number"`
		Revoked    int    `json:"revoked"`
		NextUpdate string `json:"next_update"`
	}{c.Out, list.Number.String(), n, list.NextUpdate.Format("2006-01-02T15:04:05Z")},
		fmt.Sprintf("%s: %s, until %s\n", c.Out, cli.Count(n, "revoked certificate", "revoked certificates"), list.NextUpdate.Format("2006-01-02 15:04:05 MST"))))
}

// replaceFile puts data in the place of a file, durably; readers see the one or
// the other. All may read it.
func replaceFile(name string, data []byte) error {
	dir := filepath.Dir(name)
	f, err := os.CreateTemp(dir, ".new-crl-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing its folder: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
