// Issuerctl makes a CA, says why an issuer decides as it does, and lets
// operators decide about devices.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/cloud/issuer/keyfile"
	"secretfree/cloud/issuer/pki"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
	"secretfree/station/board"
)

type grammar struct {
	cli.Common
	CA struct {
		Init caInit `cmd:"" help:"Make a root CA and an issuing CA in a new folder."`
	} `cmd:"" name:"ca" help:"The local CA."`
	Claims struct {
		Init claimsInit `cmd:"" help:"Initialise a folder as issuance store."`
	} `cmd:"" help:"The issuance store."`
	PKI     pkiCommands `cmd:"" name:"pki" help:"The key ceremony: a root CA, a CA of the product line and an issuing CA for each region."`
	Sweep   sweep       `cmd:"" help:"Find incomplete issuances and certificates that must not be active, and correct them."`
	Explain explain     `cmd:"" help:"Explain every rule of the decision about a request; issue nothing."`
	CRL     crl         `cmd:"" name:"crl" help:"Sign the revocation list of a local CA."`
	Device  device      `cmd:"" help:"Show and change the state of a device."`
	Import  importTable `cmd:"" help:"Import a table that was filled by the loader of the published reference."`
}

// newGrammar joins the commands with what they need besides the registry.
func newGrammar(h hooks) *grammar {
	g := new(grammar)
	for _, c := range []*changeFlags{&g.Device.Hold.changeFlags, &g.Device.Release.changeFlags, &g.Device.Scrap.changeFlags, &g.Device.Revoke.changeFlags, &g.Device.Transfer.changeFlags} {
		c.hooks = h
	}
	return g
}

func (grammar) Manual() cli.Manual {
	return cli.Manual{Section: 1, See: []string{"issuerd(8)", "stationctl(1)"}}
}

func (grammar) Help() string {
	return `Examples:
  openssl rand -base64 33 >ca.pass && chmod 600 ca.pass
  issuerctl ca init --dir /var/lib/issuerd/ca --name Widgiot --passphrase-file ca.pass
      Make a CA. root.pem is what the cloud must trust; root.key belongs in a safe, not on this machine.
  issuerctl claims init /var/lib/issuerd/claims
      Make the folder in which issuerd remembers what it issued.
  issuerctl explain --config /etc/secretfree/issuerd.toml board.csr
      Say why this request is, or is not, answered with a certificate: exit 0, or 1 if it is refused.
  issuerctl device hold 4d1f8e27b3c05a9e61f2d47788aabbcc --why "ticket 4711: returned by the customer"
      No certificate until it is released.
  issuerctl import --config /etc/secretfree/issuerd.toml
      List what an import would do; change nothing.`
}

type caInit struct {
	Dir                string `name:"dir" required:"" placeholder:"DIR" help:"The new folder; it must not exist or must be empty."`
	Name               string `name:"name" required:"" help:"The name in the common names of both CAs."`
	Organization       string `name:"organization" placeholder:"NAME" help:"The organization (O) in the subjects of both CAs."`
	Country            string `name:"country" placeholder:"XX" help:"The country (C) in the subjects of both CAs: two capital letters."`
	PassphraseFile     string `name:"passphrase-file" required:"" placeholder:"FILE" help:"A file with the passphrase that encrypts the issuing key."`
	RootPassphraseFile string `name:"root-passphrase-file" placeholder:"FILE" help:"A file with the passphrase of the root key; the default is the same passphrase."`
	Years              int    `name:"years" default:"20" help:"Validity of the issuing CA; the root CA is valid for 10 more years (${default})."`
}

func (c *caInit) Run(out *cli.Output) error {
	passphrase, err := keyfile.Passphrase(c.PassphraseFile)
	if err != nil {
		return err
	}
	var root []byte
	if c.RootPassphraseFile != "" {
		if root, err = keyfile.Passphrase(c.RootPassphraseFile); err != nil {
			return err
		}
	}
	for _, secret := range [][]byte{passphrase, root} {
		if err := pki.CheckPassphrase(secret); secret != nil && err != nil {
			return err
		}
	}
	if c.Years < 1 || c.Years > 100 {
		return fmt.Errorf("%w: --years is %d, want 1 to 100", cli.ErrMisuse, c.Years)
	}
	const year = 365 * 24 * time.Hour
	if err := ca.InitLocal(ca.LocalInit{
		Dir: c.Dir, Name: c.Name, Organization: c.Organization, Country: c.Country, Passphrase: passphrase, RootPassphrase: root,
		Validity: time.Duration(c.Years) * year, RootValidity: time.Duration(c.Years+10) * year,
	}); err != nil {
		return err
	}
	return out.Print(struct {
		Dir string `json:"dir"`
	}{c.Dir}, fmt.Sprintf("%s holds a new CA. Trust root.pem; take root.key offline: issuerd does not need it.\n", c.Dir))
}

type claimsInit struct {
	Dir string `arg:"" help:"The folder."`
}

func (c *claimsInit) Run(out *cli.Output) error {
	if err := claims.InitDir(c.Dir); err != nil {
		return err
	}
	return out.Print(struct {
		Dir string `json:"dir"`
	}{c.Dir}, fmt.Sprintf("%s is ready to remember what is issued.\n", c.Dir))
}

type explain struct {
	Config  string `name:"config" default:"/etc/secretfree/issuerd.toml" placeholder:"FILE" help:"The issuer's configuration (${default})."`
	Request string `arg:"" help:"A file with the request: PEM, DER, or the value of a device-csr header; - is the standard input. Or a device id, to explain the device without a request."`
}

func (e *explain) Run(ctx context.Context, out *cli.Output) error {
	c, err := issuerd.Load(e.Config)
	if err != nil {
		return err
	}
	if device, err := board.ParseDeviceID(e.Request); err == nil {
		return withIssuer(ctx, c, func(o *issuerd.Components) error { return explainDevice(ctx, out, o, device) })
	}
	data, err := readRequest(e.Request)
	if err != nil {
		return err
	}
	request, err := parseRequest(data)
	if err != nil {
		if refusal, ok := errors.AsType[issuer.Refusal](err); ok {
			return show(out, []issuer.Verdict{{Rule: refusal, Verdict: "refused", Detail: err.Error()}}, err)
		}
		return err
	}
	o, err := c.OpenIssuer(ctx) // with the key that the challenges are known by
	if err != nil {
		return err
	}
	verdicts, err := o.Explain(ctx, request)
	if verdicts != nil {
		err = show(out, verdicts, err)
	}
	return errors.Join(err, o.Close())
}

func show(out *cli.Output, verdicts []issuer.Verdict, err error) error {
	for _, v := range verdicts {
		text := fmt.Sprintf("%-12s %s\n", v.Verdict, v.Rule)
		if v.Detail != "" {
			text = fmt.Sprintf("%-12s %s\n", v.Verdict, v.Detail)
		}
		if err := out.Print(v, text); err != nil {
			return err
		}
	}
	if err != nil {
		fmt.Fprintf(out.People, "No certificate: %v\n", err)
		return cli.ErrShown
	}
	fmt.Fprintln(out.People, "A certificate would be issued, or the same one again.")
	return nil
}

func readRequest(name string) ([]byte, error) {
	in := io.Reader(os.Stdin)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("reading the request: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, issuer.MaxText+1))
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	return data, nil
}

// parseRequest reads what a device may send, in the body or in the header:
// base64 of a PEM.
func parseRequest(data []byte) (issuer.Request, error) {
	request, err := issuer.ParseRequest(data)
	if err == nil {
		return request, nil
	}
	if fromHeader, headerErr := issuer.ParseHeader(strings.TrimSpace(string(data))); headerErr == nil {
		return fromHeader, nil
	}
	return issuer.Request{}, err
}

func main() {
	os.Exit(cli.Main("issuerctl", "Make a CA for an issuer, see how it decides, and say what may be done with devices.", newGrammar(onIssued()), os.Args[1:]))
}
