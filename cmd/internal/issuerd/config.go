// Package issuerd has the configuration of an issuer and opens what it names:
// registry, CA, claims. It is a package so that the demo, the daemon, the
// function and the commands that look into an issuer run the same code.
package issuerd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca"
	"secretfree/cloud/issuer/claims"
	"secretfree/cloud/issuer/keyfile"
	"secretfree/cloud/issuer/server"
	"secretfree/cmd/internal/config"
	"secretfree/station/board"
)

// Config is issuerd's configuration file.
type Config struct {
	SKU           string          `toml:"sku"`
	Listen        string          `toml:"listen"`
	MetricsListen string          `toml:"metrics_listen"` // empty: no metrics; never the address that strangers reach
	TLS           TLS             `toml:"tls"`
	Endpoint      string          `toml:"endpoint"` // where devices connect with their certificates; part of the answer
	Registry      config.Registry `toml:"registry"`
	CA            CA              `toml:"ca"`
	Proto         *CA             `toml:"proto"` // behind POST /proto; without it, that of [ca]
	Retired       []CA            `toml:"retired_ca"`
	IoT           *IoT            `toml:"iot"` // without it, certificates are registered nowhere
	Challenge     Challenge       `toml:"challenge"`
	Limits        Limits          `toml:"limits"`
	Issuance      Issuance        `toml:"issuance"`
	Stations      []Station       `toml:"trusted_station"`
	Renewal       Renewal         `toml:"renewal"`
	Policy        Policy          `toml:"policy"`
	Log           config.Log      `toml:"log"`
}

// TLS is the table [tls]: both files or none.
type TLS struct {
	Certificate string `toml:"certificate"`
	Key         string `toml:"key"`
}

// CA is the table [ca] or [proto].
type CA struct {
	Kind string `toml:"kind"` // "local", "acmpca" or "iotcore"
	Name string `toml:"name"` // that claims remember; empty: the kind

	// Of kind "local": a key in an encrypted file, or in AWS KMS.
	Dir            string `toml:"dir"`
	PassphraseFile string `toml:"passphrase_file"`
	KMSKey         string `toml:"kms_key"`
	CRLURL         string `toml:"crl_url"` // these stand in certificates; empty: nothing does
	OCSPURL        string `toml:"ocsp_url"`

	// Of kind "acmpca".
	ARN              string `toml:"arn"`
	Template         string `toml:"template_arn"` // or its name; empty: for client authentication
	SigningAlgorithm string `toml:"signing_algorithm"`
	Root             string `toml:"root"` // a file with the root certificates

	// Of what is in AWS.
	Region   string `toml:"region"`
	Endpoint string `toml:"endpoint"` // for tests and private endpoints
}

// IoT is the table [iot]: where certificates are made known before they are
// answered.
type IoT struct {
	JITP         bool              `toml:"jitp"` // IoT Core registers by itself; here certificates are only revoked
	CARegistered bool              `toml:"ca_registered"`
	ThingType    string            `toml:"thing_type"`
	ThingGroup   string            `toml:"thing_group"`
	Policy       string            `toml:"policy"`
	Attributes   map[string]string `toml:"attributes"`
	Region       string            `toml:"region"`
	Endpoint     string            `toml:"endpoint"` // of the API; for tests and private endpoints
}

// Issuance is the table [issuance]: where it is remembered what was issued.
type Issuance struct {
	Kind string `toml:"kind"` // "dir" or "aws"; empty: that of the registry

	Dir string `toml:"dir"`

	Table            string `toml:"table"`             // empty: <sku>-iot-issuance
	Region           string `toml:"region"`            // empty: that of the registry
	DynamoDBEndpoint string `toml:"dynamodb_endpoint"` // empty: that of the registry
}

// Station is an element of [[trusted_station]].
type Station struct {
	Name string `toml:"name"` // "<sku>/<station>"
	Key  string `toml:"key"`  // what the station's station.pub holds
}

// Policy is the table [policy].
type Policy struct {
	Algorithms   []board.Algorithm `toml:"algorithms"`
	RefuseSHA1   bool              `toml:"refuse_sha1"`
	AllowNoProof bool              `toml:"allow_no_proof"`
	Days         int               `toml:"days"` // of a certificate; 0: the issuer's default

	RenewDays        int    `toml:"renew_days"` // before the end; 0: a third of the validity
	RequireChallenge bool   `toml:"require_challenge"`
	MinGeneration    int    `toml:"min_generation"`
	Organization     string `toml:"organization"`
	AlternativeName  string `toml:"alternative_name"`
	Holds            []Hold `toml:"hold"`
}

// Renewal is the table [renewal].
type Renewal struct {
	Overlap Duration `toml:"overlap"` // of a certificate with the one that renewed it; then it is revoked
}

// Duration is a time such as "24h" or "90m".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Hold is an element of [[policy.hold]].
type Hold struct {
	Station string    `toml:"station"`
	From    time.Time `toml:"from"`
	To      time.Time `toml:"to"`
	Why     string    `toml:"why"`
}

// Challenge is the table [challenge].
type Challenge struct {
	KeyFile     string `toml:"key_file"` // base64 of 32 bytes
	KMSKey      string `toml:"kms_key"`  // or a key of AWS KMS; neither: made at the start, for one issuer alone
	Region      string `toml:"region"`   // of kms_key
	KMSEndpoint string `toml:"kms_endpoint"`
	Minutes     int    `toml:"minutes"` // to answer in
}

// Limits is the table [limits]; 0 is none.
type Limits struct {
	DevicePerMinute int `toml:"device_per_minute"`
	SourcePerMinute int `toml:"source_per_minute"`
	StatusPerMinute int `toml:"status_per_minute"` // questions of a source about certificates
	Proxies         int `toml:"proxies"`           // in front, each of which adds to X-Forwarded-For
}

const (
	defaultListen = "127.0.0.1:8081"
	maxDays       = 50 * 365 // what issuer.Policy allows
)

// defaults is what a file may leave out.
func defaults() Config {
	return Config{
		Listen: defaultListen, Log: config.Log{Level: zerolog.LevelInfoValue, Format: "auto"},
		Challenge: Challenge{Minutes: 5}, Renewal: Renewal{Overlap: Duration(issuer.DefaultOverlap)}, Limits: Limits{DevicePerMinute: 12, SourcePerMinute: 240, StatusPerMinute: 6000},
	}
}

// Load reads and checks a configuration file, and fills in what may be left
// out.
func Load(name string) (Config, error) {
	c := defaults()
	file, err := config.Load(name, &c)
	if err != nil {
		return Config{}, err
	}
	return c.filled(file)
}

func (c Config) filled(file *config.File) (Config, error) {
	if c.Issuance.Kind == "" {
		c.Issuance.Kind = c.Registry.Kind
	}
	return c, c.check(file)
}

func (c Config) check(f *config.File) error {
	if err := board.CheckName(c.SKU); err != nil {
		return f.Errorf("sku", "Write 1 to 63 of a-z, 0-9 and -, starting with a letter or a digit.", "sku is %q", c.SKU)
	}
	if err := config.CheckListen(f, "listen", c.Listen, defaultListen); err != nil {
		return err
	}
	if c.MetricsListen != "" {
		if err := config.CheckListen(f, "metrics_listen", c.MetricsListen, "127.0.0.1:9108"); err != nil {
			return err
		}
	}
	if (c.TLS.Certificate == "") != (c.TLS.Key == "") {
		return f.Errorf("tls", "Write tls.certificate and tls.key, or neither.", "tls has a certificate or a key, not both")
	}
	for _, file := range []struct{ key, value string }{{"certificate", c.TLS.Certificate}, {"key", c.TLS.Key}} {
		if file.value != "" && !filepath.IsAbs(file.value) {
			return f.Errorf("tls."+file.key, "Write the absolute path of the file.", "tls.%s is %q", file.key, file.value)
		}
	}
	if strings.ContainsFunc(c.Endpoint, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return f.Errorf("endpoint", `Write where devices connect, without blanks, such as "mqtt.example.com".`, "endpoint is %q", c.Endpoint)
	}
	if err := c.Registry.Check(f); err != nil {
		return err
	}
	if err := c.CA.check(f, "ca"); err != nil {
		return err
	}
	if c.Proto != nil {
		if err := c.Proto.check(f, "proto"); err != nil {
			return err
		}
		if c.Proto.name() == c.CA.name() {
			return f.Errorf("proto.name", "Give one of them a name of its own; claims remember it.", "[ca] and [proto] are both named %q", c.CA.name())
		}
	}
	names := map[string]bool{c.CA.name(): true}
	if c.Proto != nil {
		names[c.Proto.name()] = true
	}
	for i, authority := range c.Retired {
		table := fmt.Sprintf("retired_ca[%d]", i)
		if authority.Kind == "local" && authority.PassphraseFile == "" && authority.KMSKey == "" {
			authority.PassphraseFile = "/" // not needed: it is opened without its key
		}
		if err := authority.check(f, table); err != nil {
			return err
		}
		if names[authority.name()] {
			return f.Errorf(table, "Give it the name that it had, and the new CA another: claims remember it.", "two CAs are named %q", authority.name())
		}
		names[authority.name()] = true
	}
	if c.IoT == nil && (c.CA.Kind == "iotcore" || c.Proto != nil && c.Proto.Kind == "iotcore") {
		return f.Errorf("iot", "Add the table [iot] with thing_group or policy.", "a CA of AWS IoT Core needs [iot]: its certificates are inactive until they are registered")
	}
	if c.IoT != nil && c.IoT.ThingGroup == "" && c.IoT.Policy == "" && !c.IoT.JITP {
		return f.Errorf("iot", "Write thing_group (with a policy on it), or policy.", "[iot] names no policy: a device could do nothing with its certificate")
	}
	if c.Challenge.KeyFile != "" && !filepath.IsAbs(c.Challenge.KeyFile) {
		return f.Errorf("challenge.key_file", "Write the absolute path of the file.", "challenge.key_file is %q", c.Challenge.KeyFile)
	}
	if c.Challenge.KeyFile != "" && c.Challenge.KMSKey != "" {
		return f.Errorf("challenge.kms_key", "Remove one of them.", "[challenge] has a key_file and a kms_key")
	}
	if c.Challenge.Minutes < 1 || c.Challenge.Minutes > 24*60 {
		return f.Errorf("challenge.minutes", "Write 1 to 1440.", "challenge.minutes is %d", c.Challenge.Minutes)
	}
	for _, limit := range []struct {
		key   string
		value int
	}{{"device_per_minute", c.Limits.DevicePerMinute}, {"source_per_minute", c.Limits.SourcePerMinute}, {"status_per_minute", c.Limits.StatusPerMinute}, {"proxies", c.Limits.Proxies}} {
		if limit.value < 0 || limit.value > 1_000_000 {
			return f.Errorf("limits."+limit.key, "Write 0 or more.", "limits.%s is %d", limit.key, limit.value)
		}
	}
	if err := c.Issuance.check(f, c.Registry); err != nil {
		return err
	}
	if len(c.Stations) == 0 {
		return f.Errorf("trusted_station", `Add a table [[trusted_station]] with name = "<sku>/<station>" and key = "…", the text of the station's station.pub.`,
			"there is no trusted station: every request would be refused")
	}
	for i, s := range c.Stations {
		if _, err := s.verifier(c.SKU); err != nil {
			return f.Errorf(fmt.Sprintf("trusted_station[%d]", i), "Copy the line of the station's station.pub into key, and what stands before its first + into name.", "trusted station %q: %v", s.Name, err)
		}
	}
	for _, a := range c.Policy.Algorithms {
		if !slices.Contains([]board.Algorithm{board.P256, board.P384, board.RSA}, a) {
			return f.Errorf("policy.algorithms", fmt.Sprintf("Write some of %q, %q, %q.", board.P256, board.P384, board.RSA), "policy.algorithms has %q", a)
		}
	}
	if c.Policy.Days < 0 || c.Policy.Days > maxDays {
		return f.Errorf("policy.days", fmt.Sprintf("Write for how many days a certificate is valid, %d (50 years) at the most; 0 is ten years.", maxDays), "policy.days is %d", c.Policy.Days)
	}
	if o := time.Duration(c.Renewal.Overlap); o < time.Minute || o > days(maxDays) {
		return f.Errorf("renewal.overlap", `Write how long the former certificate stays valid after a renewal, such as "24h"; "1m" at the least.`, "renewal.overlap is %v", o)
	}
	if err := c.Log.Check(f); err != nil {
		return err
	}
	challenges, err := c.Challenge.with(c.SKU, make([]byte, 32)) // the key is not looked at here
	if err != nil {
		return f.Errorf("challenge", "Correct it.", "%v", err)
	}
	policy, err := c.IssuerPolicy(challenges)
	if err != nil {
		return err
	}
	if err := policy.Check(); err != nil {
		return f.Errorf("policy", "Correct it.", "%v", err)
	}
	return nil
}

func (c CA) name() string {
	if c.Name != "" {
		return c.Name
	}
	return c.Kind
}

func (c CA) check(f *config.File, table string) error {
	const kinds = `Write kind = "local", "acmpca" or "iotcore".`
	if c.Name != "" {
		if err := board.CheckName(c.Name); err != nil {
			return f.Errorf(table+".name", "Write 1 to 63 of a-z, 0-9 and -, and never change it.", "%s.name is %q", table, c.Name)
		}
	}
	of := map[string][]string{
		"local": {"dir", "passphrase_file", "kms_key", "crl_url", "ocsp_url", "region", "endpoint"}, "iotcore": {"region", "endpoint"},
		"acmpca": {"arn", "template_arn", "signing_algorithm", "root", "region", "endpoint"},
	}
	if of[c.Kind] == nil {
		return f.Errorf(table+".kind", kinds, "%s.kind is %q", table, c.Kind)
	}
	set := []struct{ key, value string }{
		{"dir", c.Dir}, {"passphrase_file", c.PassphraseFile}, {"kms_key", c.KMSKey}, {"crl_url", c.CRLURL}, {"ocsp_url", c.OCSPURL}, {"arn", c.ARN}, {"template_arn", c.Template},
		{"signing_algorithm", c.SigningAlgorithm}, {"root", c.Root}, {"region", c.Region}, {"endpoint", c.Endpoint},
	}
	for _, s := range set {
		if s.value != "" && !slices.Contains(of[c.Kind], s.key) {
			return f.Errorf(table+"."+s.key, "Remove it, or choose another kind.", "%s.%s does not go with kind = %q", table, s.key, c.Kind)
		}
	}
	switch c.Kind {
	case "local":
		return c.checkLocal(f, table)
	case "acmpca":
		if c.ARN == "" {
			return f.Errorf(table+".arn", "Write the ARN of the certificate authority in ACM Private CA.", "%s.arn is missing", table)
		}
		if !filepath.IsAbs(c.Root) {
			return f.Errorf(table+".root", "Write the absolute path of the file with the root certificate (PEM).", "%s.root is %q", table, c.Root)
		}
	}
	return nil
}

func (c CA) checkLocal(f *config.File, table string) error {
	if !filepath.IsAbs(c.Dir) {
		return f.Errorf(table+".dir", "Write the absolute path of the folder that issuerctl ca init or pki run made.", "%s.dir is %q", table, c.Dir)
	}
	if (c.KMSKey == "" || c.PassphraseFile != "") && !filepath.IsAbs(c.PassphraseFile) {
		return f.Errorf(table+".passphrase_file", "Write the absolute path of the file that holds the passphrase of issuing.key.", "%s.passphrase_file is %q", table, c.PassphraseFile)
	}
	return c.checkURLs(f, table)
}

func (i Issuance) check(f *config.File, registry config.Registry) error {
	switch i.Kind {
	case "dir":
		if !filepath.IsAbs(i.Dir) {
			return f.Errorf("issuance.dir", "Write the absolute path of the folder that issuerctl claims init made.", "issuance.dir is %q", i.Dir)
		}
		if i.Table != "" || i.Region != "" || i.DynamoDBEndpoint != "" {
			return f.Errorf("issuance.kind", `Remove table, region and dynamodb_endpoint, or write kind = "aws".`, `issuance.kind is "dir" and has settings of "aws"`)
		}
	case "aws":
		if i.Dir != "" {
			return f.Errorf("issuance.dir", `Remove it, or write kind = "dir".`, `issuance.dir does not go with issuance.kind = "aws"`)
		}
		if i.Region == "" && registry.Region == "" {
			return f.Errorf("issuance.region", "Write the region of the table.", "issuance.region and registry.region are both missing")
		}
		return config.CheckDynamoDB(f, "issuance", i.Table, i.Region, i.DynamoDBEndpoint)
	default:
		return f.Errorf("issuance.kind", `Write "dir" or "aws".`, "issuance.kind is %q", i.Kind)
	}
	return nil
}

func (i Issuance) open(ctx context.Context, sku string, registry config.Registry) (issuer.Claims, error) {
	if i.Kind == "dir" {
		return claims.OpenDir(i.Dir)
	}
	c := claims.DynamoDBConfig{Table: i.Table, Region: i.Region, Endpoint: i.DynamoDBEndpoint}
	if c.Table == "" {
		c.Table = claims.TableName(sku)
	}
	if c.Region == "" {
		c.Region = registry.Region
	}
	if c.Endpoint == "" {
		c.Endpoint = registry.DynamoDBEndpoint
	}
	return claims.OpenDynamoDB(ctx, c)
}

func (s Station) verifier(sku string) (board.Verifier, error) {
	v, err := note.NewVerifier(strings.TrimSpace(s.Key))
	if err != nil {
		return nil, fmt.Errorf("its key is not one: %w", err)
	}
	if v.Name() != s.Name {
		return nil, fmt.Errorf("its key is that of %q", v.Name())
	}
	if of, _, _ := strings.Cut(s.Name, "/"); of != sku {
		return nil, fmt.Errorf("it is a station of the SKU %q, this issuer is for %q", of, sku)
	}
	return v, nil
}

func days(n int) time.Duration { return time.Duration(n) * 24 * time.Hour }

func (c Config) IssuerPolicy(challenges *issuer.Challenges) (issuer.Policy, error) {
	p := issuer.Policy{
		SKU: c.SKU, Algorithms: c.Policy.Algorithms, RefuseSHA1: c.Policy.RefuseSHA1, AllowNoProof: c.Policy.AllowNoProof,
		Validity: days(c.Policy.Days), Renew: days(c.Policy.RenewDays), Overlap: time.Duration(c.Renewal.Overlap), RequireFresh: c.Policy.RequireChallenge,
		MinGeneration: c.Policy.MinGeneration, Organization: c.Policy.Organization, AlternativeName: c.Policy.AlternativeName, Challenges: challenges,
	}
	for _, h := range c.Policy.Holds {
		p.Holds = append(p.Holds, issuer.LotHold{Station: h.Station, From: h.From, To: h.To, Why: h.Why})
	}
	for _, s := range c.Stations {
		v, err := s.verifier(c.SKU)
		if err != nil {
			return issuer.Policy{}, fmt.Errorf("trusted station %q: %w", s.Name, err)
		}
		p.Stations = append(p.Stations, v)
	}
	return p, nil
}

// open makes the CA. A key in KMS is asked for its public half.
func (c CA) open(ctx context.Context) (issuer.CA, error) {
	switch c.Kind {
	case "acmpca":
		template := c.Template
		if _, name, isARN := strings.Cut(template, ":acm-pca:::template/"); isARN {
			template = name
		}
		roots, err := keyfile.Certificates(c.Root)
		if err != nil {
			return nil, fmt.Errorf("the root of the CA in ACM PCA: %w", err)
		}
		return ca.OpenACMPCA(ctx, ca.ACMPCAConfig{
			ARN: c.ARN, Roots: roots, Template: template, SigningAlgorithm: c.SigningAlgorithm, Region: c.Region, Endpoint: c.Endpoint,
		})
	case "iotcore":
		return ca.OpenIoTCore(ctx, ca.IoTCoreConfig{Region: c.Region, Endpoint: c.Endpoint})
	}
	local := ca.LocalConfig{Dir: c.Dir, PassphraseFile: c.PassphraseFile, CRLURL: c.CRLURL, OCSPURL: c.OCSPURL}
	if c.KMSKey != "" {
		signer, err := ca.OpenKMSSigner(ctx, ca.KMSConfig{KeyID: c.KMSKey, Region: c.Region, Endpoint: c.Endpoint})
		if err != nil {
			return nil, err
		}
		local.Signer = signer
	}
	return ca.OpenLocal(local)
}

// openKeyless is open without the key of a local CA.
func (c CA) openKeyless(ctx context.Context) (issuer.CA, error) {
	if c.Kind != "local" {
		return c.open(ctx)
	}
	return ca.OpenLocal(ca.LocalConfig{Dir: c.Dir, Keyless: true})
}

// Opened is an issuer with what its doors need.
type Components struct {
	*issuer.Issuer
	Registry   issuer.Registry
	New, Proto string // the names of the CAs behind the two doors
	Challenges *issuer.Challenges
	Endpoint   func(context.Context) (string, error)
	Claims     issuer.Claims
	CAs        map[string]issuer.CA
	close      func() error
}

// Doors are what the issuer's handlers have in common.
func (o *Components) HandlerConfig(l Limits) server.HandlerConfig {
	c := server.HandlerConfig{
		Issuer: o.Issuer, New: o.New, Proto: o.Proto, Endpoint: o.Endpoint, Challenges: o.Challenges, Sources: l.limiter(l.SourcePerMinute),
	}
	if l.Proxies > 0 {
		c.Source = l.source
	}
	return c
}

// Close gives back what is open.
func (o *Components) Close() error { return o.close() }

// OpenIssuer makes the issuer of a configuration that came from Load.
func (c Config) OpenIssuer(ctx context.Context) (*Components, error) {
	challenges, err := c.Challenge.open(ctx, c.SKU)
	if err != nil {
		return nil, err
	}
	return c.openIssuer(ctx, challenges, CA.open)
}

// OpenOperator makes an issuer that has nothing signed: no key of a local CA,
// and none of the challenges, has to be within reach of who revokes, sweeps and
// looks.
func (c Config) OpenOperator(ctx context.Context) (*Components, error) {
	challenges, err := c.Challenge.with(c.SKU, make([]byte, 32)) // no request is looked at
	if err != nil {
		return nil, err
	}
	return c.openIssuer(ctx, challenges, CA.openKeyless)
}

// OpenSigner is OpenOperator with the keys of local CAs, for revocation lists.
func (c Config) OpenSigner(ctx context.Context) (*Components, error) {
	challenges, err := c.Challenge.with(c.SKU, make([]byte, 32)) // no request is looked at
	if err != nil {
		return nil, err
	}
	return c.openIssuer(ctx, challenges, CA.open)
}

func (c Config) openIssuer(ctx context.Context, challenges *issuer.Challenges, open func(CA, context.Context) (issuer.CA, error)) (*Components, error) {
	policy, err := c.IssuerPolicy(challenges)
	if err != nil {
		return nil, err
	}
	o := &Components{New: c.CA.name(), Proto: c.CA.name(), Challenges: challenges, close: func() error { return nil }}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return nil, fmt.Errorf("opening the registry: %w", err)
	}
	o.Registry = aws
	if dir != nil {
		o.Registry = dir
	}
	config := issuer.Config{Policy: policy, Registry: o.Registry, CAs: map[string]issuer.CA{}}
	if config.CAs[o.New], err = open(c.CA, ctx); err != nil {
		return nil, err
	}
	if c.Proto != nil {
		o.Proto = c.Proto.name()
		if config.CAs[o.Proto], err = open(*c.Proto, ctx); err != nil {
			return nil, err
		}
	}
	config.Retired = map[string]issuer.CA{}
	for _, authority := range c.Retired {
		openRetired := open
		if authority.Kind == "local" && authority.PassphraseFile == "" && authority.KMSKey == "" {
			openRetired = CA.openKeyless
		}
		if config.Retired[authority.name()], err = openRetired(authority, ctx); err != nil {
			return nil, fmt.Errorf("the retired CA %s: %w", authority.name(), err)
		}
	}
	if c.Endpoint != "" {
		o.Endpoint = func(context.Context) (string, error) { return c.Endpoint, nil }
	}
	if c.IoT != nil {
		registrar, err := ca.OpenIoTRegistrar(ctx, ca.IoTRegistrarConfig{
			JITP: c.IoT.JITP, CARegistered: c.IoT.CARegistered, ThingType: c.IoT.ThingType, ThingGroup: c.IoT.ThingGroup, Policy: c.IoT.Policy,
			Attributes: c.IoT.Attributes, Region: c.IoT.Region, Endpoint: c.IoT.Endpoint,
		})
		if err != nil {
			return nil, err
		}
		config.Registrar = registrar
		if c.Endpoint == "" {
			o.Endpoint = registrar.DataEndpoint
		}
	}
	if limiter := c.Limits.limiter(c.Limits.DevicePerMinute); limiter != nil {
		config.Admit = func(device board.DeviceID) error {
			if !limiter.Allow(device.String(), time.Now()) {
				return server.ErrTooMany{Who: "the device " + device.String()}
			}
			return nil
		}
	}
	if config.Claims, err = c.Issuance.open(ctx, c.SKU, c.Registry); err != nil {
		return nil, fmt.Errorf("opening the memory of what was issued: %w", err)
	}
	o.Claims, o.CAs = config.Claims, maps.Clone(config.CAs)
	maps.Copy(o.CAs, config.Retired)
	if closer, ok := config.Claims.(io.Closer); ok {
		o.close = closer.Close
	}
	if o.Issuer, err = issuer.New(config); err != nil {
		return nil, errors.Join(err, o.close())
	}
	if err := o.checkNames(ctx); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

// checkNames refuses a CA that has the name of another one, whose certificates
// devices have: none of them could be answered again. Only a folder of claims
// can be asked without reading all of it.
func (o *Components) checkNames(ctx context.Context) error {
	store, ok := o.Claims.(interface {
		Signed(ctx context.Context, ca string) (issuer.Issuance, error)
	})
	if !ok {
		return nil
	}
	for name := range o.CAs {
		issuance, err := store.Signed(ctx, name)
		if errors.Is(err, issuer.ErrNoClaim) {
			continue
		}
		if err != nil {
			return fmt.Errorf("reading what the CA %s has signed: %w", name, err)
		}
		if err := o.Issuer.CheckStored(issuance); err != nil {
			return fmt.Errorf("the CA named %[1]s is not the one that signed what devices have under this name: give the new one a name of its own, "+
				"and name the former one in [[retired_ca]] with name = %[1]q (device %[2]s: %[3]w)", name, issuance.Claim.Device, err)
		}
	}
	return nil
}

func (l Limits) limiter(perMinute int) *server.Limiter {
	if perMinute == 0 {
		return nil
	}
	return server.NewLimiter(time.Minute/time.Duration(perMinute), perMinute)
}

// source names where a request comes from: behind proxies, what the outermost
// of ours saw.
func (l Limits) source(r *http.Request) string {
	forwarded := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	return server.SourceName(strings.TrimSpace(forwarded[max(len(forwarded)-l.Proxies, 0)]))
}

func (c Challenge) with(sku string, key []byte) (*issuer.Challenges, error) {
	return issuer.NewChallenges(sku, key, time.Duration(c.Minutes)*time.Minute)
}

func (c Challenge) open(ctx context.Context, sku string) (*issuer.Challenges, error) {
	if c.KMSKey != "" {
		key, err := ca.KMSMac(ctx, ca.KMSConfig{KeyID: c.KMSKey, Region: c.Region, Endpoint: c.KMSEndpoint}, "secretfree challenges of "+sku)
		if err != nil {
			return nil, fmt.Errorf("the key of the challenges: %w", err)
		}
		return c.with(sku, key)
	}
	key := make([]byte, 32)
	if c.KeyFile == "" {
		_, _ = rand.Read(key) // never fails (crypto/rand)
		return c.with(sku, key)
	}
	text, err := keyfile.Passphrase(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("the key of the challenges: %w", err)
	}
	if key, err = base64.StdEncoding.DecodeString(string(text)); err != nil || len(key) != 32 {
		return nil, fmt.Errorf("the key of the challenges: %s does not hold the base64 of 32 bytes; make it with: openssl rand -base64 32", c.KeyFile)
	}
	return c.with(sku, key)
}

// NewLog makes a logger; every line has the SKU.
func NewLog(w io.Writer, c Config) (zerolog.Logger, error) { return c.Log.New(w, "sku", c.SKU) }

// OpenLog makes the daemon's own logger, which is NewLog's with more; see
// config.DaemonLog.
func OpenLog(w io.Writer, c Config) (zerolog.Logger, error) { return c.Log.New(w, "sku", c.SKU) }
