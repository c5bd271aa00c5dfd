package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"secretfree/cmd/internal/cli"
	"secretfree/spool/journal"
	"secretfree/station/board"
)

type proof struct {
	place
	Device string `arg:"" help:"The device id, 32 hex digits."`
	Out    string `name:"out" placeholder:"FILE" help:"Write the proof to this file instead of the standard output."`
}

func (p *proof) Run(ctx context.Context, out *cli.Output) error {
	device, err := board.ParseDeviceID(p.Device)
	if err != nil {
		return fmt.Errorf("%w: %q is %v", cli.ErrMisuse, p.Device, err)
	}
	dir, err := p.dir()
	if err != nil {
		return err
	}
	if err := present(dir); err != nil {
		return err
	}
	text, err := prove(ctx, dir, device)
	if errors.Is(err, journal.ErrUnsigned) {
		return fmt.Errorf("%w; a station signs its journal every minute while boards arrive, and when it stops", err)
	}
	if err != nil {
		return err
	}
	if p.Out == "" {
		return out.Print(struct {
			Device board.DeviceID `json:"device"`
			Proof  string         `json:"proof"`
		}{device, string(text)}, string(text))
	}
	if err := os.WriteFile(p.Out, text, 0o644); err != nil {
		return fmt.Errorf("writing the proof: %w", err)
	}
	return out.Print(struct {
		Device board.DeviceID `json:"device"`
		File   string         `json:"file"`
	}{device, p.Out}, fmt.Sprintf("%s proves what was read of %s. Check it with: stationctl verify --key station.pub %s\n", p.Out, device, p.Out))
}

// prove proves the newest record of a device. Where the index says which entry
// that is, the journal is not read as a whole.
func prove(ctx context.Context, dir string, device board.DeviceID) ([]byte, error) {
	seqs, err := entriesOf(ctx, dir, device)
	if err != nil {
		seqs = nil
	}
	for _, seq := range slices.Backward(seqs) {
		e, err := journal.FindEntry(dir, journal.Position{Offset: -1}, seq)
		if err != nil {
			break
		}
		if e.Record() == nil || e.Verdict.Device != device {
			continue
		}
		text, err := journal.ProveEntry(ctx, dir, e)
		if err == nil {
			return text, nil
		}
		break
	}
	return journal.ProveContext(ctx, dir, device)
}

type verify struct {
	Key   string   `name:"key" required:"" placeholder:"FILE" help:"The station's public key, its station.pub, from a trusted source."`
	Files []string `arg:"" name:"file" help:"Proofs."`
}

const maxProof = 1 << 20

// verified is what a proof proves, or why it does not.
type verified struct {
	File        string `json:"file"`
	OK          bool   `json:"ok"`
	Problem     string `json:"problem,omitempty"`
	Device      string `json:"device,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Station     string `json:"station,omitempty"`
	ReadAt      string `json:"read_at,omitempty"`
	Entry       uint64 `json:"entry,omitempty"`
	Signed      uint64 `json:"signed,omitempty"`
	Proved      bool   `json:"possession_proved,omitempty"`
}

func (v *verify) Run(out *cli.Output) error {
	verifier, err := readKey(v.Key)
	if err != nil {
		return err
	}
	bad := 0
	for _, file := range v.Files {
		result := verified{File: file}
		proven, err := verifyFile(file, func(text []byte) (journal.Proven, error) { return journal.VerifyProof(text, verifier) })
		text := ""
		if err != nil {
			bad++
			result.Problem = err.Error()
			text = fmt.Sprintf("%s: does not hold: %v\n", file, err)
		} else {
			r := proven.Sealed.Record()
			result.OK, result.Device, result.Fingerprint, result.Station = true, r.Device.String(), r.Fingerprint().String(), r.Origin()
			result.ReadAt, result.Entry, result.Signed, result.Proved = r.ReadAt.Format("2006-01-02T15:04:05.000Z"), proven.Entry.Seq, proven.Size, r.Proof != nil
			possession := "the board proved that it owns the key"
			if r.Proof == nil {
				possession = "the board did not prove that it owns the key"
			}
			text = fmt.Sprintf("%s: %s read device %s with key %s at %s; %s. Entry %d of a journal of %d that the station signed.\n",
				file, result.Station, result.Device, result.Fingerprint, result.ReadAt, possession, result.Entry, result.Signed)
		}
		if err := out.Print(result, text); err != nil {
			return err
		}
	}
	if bad > 0 {
		return cli.ErrShown
	}
	return nil
}

func verifyFile(file string, check func([]byte) (journal.Proven, error)) (journal.Proven, error) {
	f, err := os.Open(file)
	if err != nil {
		return journal.Proven{}, err
	}
	defer f.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(io.LimitReader(f, maxProof+1)); err != nil {
		return journal.Proven{}, err
	}
	if text.Len() > maxProof {
		return journal.Proven{}, fmt.Errorf("it is larger than %d bytes", maxProof)
	}
	return check(text.Bytes())
}
