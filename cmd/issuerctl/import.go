package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"secretfree/cloud"
	"secretfree/cmd/internal/cli"
	"secretfree/cmd/internal/issuerd"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

type importTable struct {
	Config  string `name:"config" default:"/etc/secretfree/issuerd.toml" placeholder:"FILE" help:"The issuer's configuration, which names the registry (${default})."`
	Apply   bool   `name:"apply" help:"Sign the records. Without this flag nothing is changed."`
	Key     string `name:"key" placeholder:"DIR" help:"With --apply: the folder of the operator's key."`
	InitKey string `name:"init-key" placeholder:"DIR" help:"Only make an operator's key in this folder, and print the line for the issuer's configuration."`
	Name    string `name:"name" placeholder:"SKU/OPERATOR" help:"The name of the new key."`
}

func (importTable) Help() string {
	return `Takes in a table that the published reference's own loader filled: items with an id and a public key, which nobody signed.
Each is listed: signed (nothing is to be done), sign (it can be signed), refused (why, and a person has to decide).

With --apply an operator vouches for them: each gets a record signed with the operator's key, and the guard of its key. An item
is only signed as long as it is exactly what was listed. What is signed already is left alone, so that an import which broke off
is carried on by running it again.

Nothing was proved about these keys. An issuer believes such records only with [policy] allow_no_proof = true, which holds for
all records of the SKU, and with the operator's key as a [[trusted_station]].

Examples:
  issuerctl import --init-key /root/operator --name widgiot/operator
      Make the operator's key. Keep the folder as secret as the table is precious.
  issuerctl import
      Exit 0 if everything is signed or can be, 1 if something is refused.
  issuerctl import --apply --key /root/operator`
}

// importLine is what is, or would be, done to an item.
type importLine struct {
	ID        string `json:"id"`
	Verdict   string `json:"verdict"`
	Key       string `json:"key,omitempty"`
	Algorithm string `json:"algorithm,omitempty"`
	Reason    string `json:"reason,omitempty"`
}

// The verdicts on an item.
const (
	wasSigned = "signed"
	canSign   = "sign"
	nowSigned = "imported"
	refused   = "refused"
	failed    = "failed"
)

// importSummary is the last line.
type importSummary struct {
	OK       bool     `json:"ok"`
	Applied  bool     `json:"applied"`
	Signed   int      `json:"signed"`
	Sign     int      `json:"sign"`
	Imported int      `json:"imported"`
	Refused  int      `json:"refused"`
	Failed   int      `json:"failed"`
	Needs    []string `json:"needs"` // of the issuer's configuration
}

func (i *importTable) Run(ctx context.Context, out *cli.Output) error {
	if i.InitKey != "" {
		return i.initKey(out)
	}
	if i.Name != "" {
		return fmt.Errorf("%w: --name goes with --init-key", cli.ErrMisuse)
	}
	if i.Apply != (i.Key != "") {
		return fmt.Errorf("%w: --apply and --key go together", cli.ErrMisuse)
	}
	c, err := issuerd.Load(i.Config)
	if err != nil {
		return err
	}
	var operator *journal.Identity
	if i.Apply {
		if operator, err = loadOperator(i.Key, c.SKU); err != nil {
			return err
		}
	}
	aws, dir, err := c.Registry.Open(ctx, c.SKU)
	if err != nil {
		return fmt.Errorf("opening the registry: %w", err)
	}
	var registry legacyRegistry = aws
	if dir != nil {
		registry = dir
	}
	all, err := registry.LegacyItems(ctx)
	if err != nil {
		return err
	}
	summary := importSummary{Applied: i.Apply, Needs: needs(c, operator, all)}
	var broken error
	for _, l := range all {
		line := importLine{ID: l.ID, Verdict: canSign}
		if l.Key != (board.Key{}) {
			line.Key, line.Algorithm = l.Key.Fingerprint().String(), string(l.Key.Algorithm())
		}
		switch {
		case l.Refused != nil:
			line.Verdict, line.Reason = refused, l.Refused.Error()
			summary.Refused++
		case l.Signed:
			line.Verdict = wasSigned
			summary.Signed++
		case !i.Apply || broken != nil:
			summary.Sign++
		default:
			switch err := vouch(ctx, registry, l, operator); {
			case err == nil:
				line.Verdict = nowSigned
				summary.Imported++
			case isVerdict(err):
				line.Verdict, line.Reason = refused, err.Error()
				summary.Refused++
			default:
				line.Verdict, line.Reason, broken = failed, err.Error(), err
				summary.Failed++
			}
		}
		if err := out.Print(line, fmt.Sprintf("%-8s  %-32s  %s\n", line.Verdict, printable(l.ID), importNote(line))); err != nil {
			return err
		}
	}
	return i.summarise(out, summary)
}

func importNote(l importLine) string {
	if l.Reason != "" {
		return l.Reason
	}
	return l.Algorithm + " " + l.Key
}

// printable is an id as a terminal may show it.
func printable(id string) string {
	if quoted := fmt.Sprintf("%.80q", id); quoted != `"`+id+`"` {
		return quoted
	}
	return id
}

func (i *importTable) summarise(out *cli.Output, s importSummary) error {
	s.OK = s.Refused == 0 && s.Failed == 0
	text := fmt.Sprintf("Signed already: %d; can be signed: %d; refused: %d. Nothing was changed.\n", s.Signed, s.Sign, s.Refused)
	if i.Apply {
		text = fmt.Sprintf("Imported: %d; signed already: %d; refused: %d.\n", s.Imported, s.Signed, s.Refused)
	}
	if s.Failed > 0 {
		text += fmt.Sprintf("It broke off with %d left: run it again.\n", s.Sign+s.Failed)
	}
	for _, need := range s.Needs {
		text += need + "\n"
	}
	if err := out.Print(s, text); err != nil {
		return err
	}
	if !s.OK {
		return cli.ErrShown
	}
	return nil
}

// needs says what the issuer's configuration lacks for what is imported to get
// certificates.
func needs(c issuerd.Config, operator *journal.Identity, all []cloud.LegacyItem) []string {
	lacks := []string{}
	lacking := map[board.Algorithm]bool{}
	for _, l := range all {
		if algorithm := l.Key.Algorithm(); l.Refused == nil && !l.Signed {
			lacking[algorithm] = !slices.Contains(c.Policy.Algorithms, algorithm) && (len(c.Policy.Algorithms) > 0 || algorithm != board.P256)
		}
	}
	if len(lacking) > 0 && !c.Policy.AllowNoProof {
		lacks = append(lacks, "These records hold no proof of possession: the issuer refuses them unless its [policy] has allow_no_proof = true.")
	}
	for _, algorithm := range []board.Algorithm{board.P256, board.P384, board.RSA} {
		if lacking[algorithm] {
			lacks = append(lacks, fmt.Sprintf("The issuer's [policy] algorithms lacks %q.", algorithm))
		}
	}
	if operator != nil && !slices.ContainsFunc(c.Stations, func(s issuerd.Station) bool { return strings.TrimSpace(s.Key) == operator.Key }) {
		lacks = append(lacks, "The issuer does not trust this operator's key. Its configuration needs:\n"+trust(operator))
	}
	return lacks
}

func trust(o *journal.Identity) string {
	return fmt.Sprintf("[[trusted_station]]\nname = %q\nkey = %q", o.Verifier.Name(), o.Key)
}

// isVerdict tells what concerns one item, so that the others may go on.
func isVerdict(err error) bool {
	if _, conflict := errors.AsType[*board.Conflict](err); conflict {
		return true
	}
	for _, verdict := range []error{cloud.ErrNotAsListed, cloud.ErrDamaged, board.ErrRecord, board.ErrEnvelope} {
		if errors.Is(err, verdict) {
			return !errors.Is(err, cloud.ErrNoRegistry)
		}
	}
	return false
}

// legacyRegistry lists the items that no station wrote, and signs them; see
// package cloud.
type legacyRegistry interface {
	LegacyItems(ctx context.Context) ([]cloud.LegacyItem, error)
	Import(ctx context.Context, l cloud.LegacyItem, s board.Sealed) error
}

// vouch signs an item in the operator's name.
func vouch(ctx context.Context, registry legacyRegistry, l cloud.LegacyItem, operator *journal.Identity) error {
	sku, name, _ := strings.Cut(operator.Signer.Name(), "/")
	sealed, err := board.Seal(board.Record{
		SKU: sku, Station: name, Device: l.Device, Key: l.Key, Generation: 1, ReadAt: time.Now().UTC().Truncate(time.Millisecond),
		Facts: map[string]string{cloud.ImportedFact: "from an item without a record"},
	}, operator.Signer)
	if err != nil {
		return err
	}
	return registry.Import(ctx, l, sealed)
}

func loadOperator(dir, sku string) (*journal.Identity, error) {
	operator, err := journal.OpenIdentity(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the operator's key: %w", err)
	}
	of, name, _ := strings.Cut(operator.Signer.Name(), "/")
	if err := board.CheckName(name); err != nil {
		return nil, fmt.Errorf("the operator's key is that of %q: %w", operator.Signer.Name(), err)
	}
	if of != sku {
		return nil, fmt.Errorf("the operator's key is of the SKU %q, this issuer is for %q", of, sku)
	}
	return &operator, nil
}

func (i *importTable) initKey(out *cli.Output) error {
	sku, name, _ := strings.Cut(i.Name, "/")
	if err := errors.Join(board.CheckName(sku), board.CheckName(name)); err != nil {
		return fmt.Errorf("%w: --name %q is not <sku>/<operator>: %w", cli.ErrMisuse, i.Name, err)
	}
	if i.Apply || i.Key != "" {
		return fmt.Errorf("%w: --init-key only makes a key", cli.ErrMisuse)
	}
	if err := os.Mkdir(i.InitKey, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the folder of the operator's key: %w", err)
	}
	operator, err := journal.LoadIdentity(i.InitKey, i.Name)
	if err != nil {
		return err
	}
	return out.Print(struct {
		Name string `json:"name"`
		Key  string `json:"key"`
	}{i.Name, operator.Key}, trust(&operator)+"\n")
}
