package spool

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"os"
	"strings"
	"testing"

	formatslog "github.com/transparency-dev/formats/log"
	formatsproof "github.com/transparency-dev/formats/proof"
	merkleproof "github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"secretfree/spool/journal"
	"secretfree/station/board"
)

// What we sign and prove holds with an implementation that is not ours, for
// every record and every size of the journal.
func TestProofWithAnotherImplementation(t *testing.T) {
	k := newKit(t)
	k.spool.Close()
	k.size = 4 << 10
	k.mustOpen()
	var all []board.Record
	for range 20 {
		all = append(all, k.mustAppend())
		if err := k.spool.Checkpoint(); err != nil {
			t.Fatal(err)
		}
		for _, r := range []board.Record{all[0], all[len(all)/2], all[len(all)-1]} {
			data, err := journal.Prove(k.dir, r.Device)
			if err != nil {
				t.Fatal(err)
			}
			var p formatsproof.TLogProof
			if err := p.Unmarshal(data); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p.Marshal(), data) {
				t.Fatal("the other implementation writes another proof")
			}
			c, _, _, err := formatslog.ParseCheckpoint(p.Checkpoint, "widgiot/line3-a", k.id.Verifier)
			if err != nil {
				t.Fatal(err)
			}
			var hashes [][]byte
			for _, h := range p.Hashes {
				hashes = append(hashes, h[:])
			}
			if err := merkleproof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, c.Size, rfc6962.DefaultHasher.HashLeaf(p.ExtraData), hashes, c.Hash); err != nil {
				t.Fatalf("record %d in %d: %v", p.Index, c.Size, err)
			}
			proven, err := journal.VerifyProof(data, k.id.Verifier)
			if err != nil || proven.Sealed.Record().Device != r.Device || proven.Size != c.Size || proven.Entry.Seq != p.Index {
				t.Fatalf("VerifyProof: %+v, %v", proven, err)
			}
		}
	}
}

func TestProveRefusals(t *testing.T) {
	k := newKit(t)
	r := k.mustAppend()
	if _, err := journal.Prove(k.dir, r.Device); !errors.Is(err, journal.ErrUnsigned) {
		t.Errorf("without a checkpoint: %v", err)
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	late := k.mustAppend()
	if _, err := journal.Prove(k.dir, late.Device); !errors.Is(err, journal.ErrUnsigned) {
		t.Errorf("after the checkpoint: %v", err)
	}
	if _, err := journal.Prove(k.dir, newRecord(t).Device); !errors.Is(err, journal.ErrNoRecord) {
		t.Errorf("an unknown device: %v", err)
	}
	if _, err := journal.Prove(k.dir, r.Device); err != nil {
		t.Error(err)
	}
}

// A proof in which anything is another is none.
func TestVerifyProofRefusals(t *testing.T) {
	k := newKit(t)
	r, other := k.mustAppend(), k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	good, err := journal.Prove(k.dir, r.Device)
	if err != nil {
		t.Fatal(err)
	}
	p, err := journal.ParseProof(good)
	if err != nil {
		t.Fatal(err)
	}
	data, err := journal.Prove(k.dir, other.Device)
	if err != nil {
		t.Fatal(err)
	}
	q, err := journal.ParseProof(data)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := journal.Checkpoint{Size: 3, Root: k.spool.tree.Root()}.Encode(stranger.Signer)
	if err != nil {
		t.Fatal(err)
	}
	small, err := journal.Checkpoint{Size: 1, Root: k.spool.leaves[0]}.Encode(k.id.Signer)
	if err != nil {
		t.Fatal(err)
	}
	segmentEntry, err := os.ReadFile(segment(k))
	if err != nil {
		t.Fatal(err)
	}
	first, _, err := journal.ReadLine(bytes.SplitAfter(segmentEntry, []byte("\n"))[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit func(p *journal.Proof)
		want error
	}{
		"another entry":              {func(p *journal.Proof) { p.Entry = q.Entry }, journal.ErrProof},
		"another index":              {func(p *journal.Proof) { p.Index = q.Index }, journal.ErrProof},
		"another entry and index":    {func(p *journal.Proof) { p.Entry, p.Index = q.Entry, q.Index }, journal.ErrProof},
		"a hash less":                {func(p *journal.Proof) { p.Hashes = p.Hashes[1:] }, journal.ErrProof},
		"no entry":                   {func(p *journal.Proof) { p.Entry = []byte("{}") }, journal.ErrProof},
		"an entry that is no record": {func(p *journal.Proof) { p.Entry, p.Index = first, 0 }, journal.ErrProof},
		"another key's checkpoint":   {func(p *journal.Proof) { p.Checkpoint = forged }, journal.ErrTampered},
		"no checkpoint":              {func(p *journal.Proof) { p.Checkpoint = nil }, journal.ErrTampered},
		"a checkpoint before it":     {func(p *journal.Proof) { p.Checkpoint = small }, journal.ErrProof},
	} {
		bad := p
		c.edit(&bad)
		if _, err := journal.VerifyProof(bad.Encode(), k.id.Verifier); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := journal.VerifyProof(good, stranger.Verifier); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("with another key: %v", err)
	}
	for name, edit := range map[string][2]string{
		"another version": {"@v1", "@v2"},
		"no extra":        {"extra ", "more "},
		"no index":        {"index ", "place "},
		"a leading zero":  {"index ", "index 0"},
	} {
		text := strings.Replace(string(good), edit[0], edit[1], 1)
		if _, err := journal.VerifyProof([]byte(text), k.id.Verifier); !errors.Is(err, journal.ErrProof) {
			t.Errorf("%s: %v, want %v", name, err, journal.ErrProof)
		}
	}
	if _, err := journal.VerifyProof(make([]byte, journal.MaxProof+1), k.id.Verifier); !errors.Is(err, journal.ErrProof) {
		t.Errorf("too long: %v", err)
	}
}

// A record that a station signed with a proof of possession that does not hold
// is no proof of anything.
func TestVerifyProofLooksAtPossession(t *testing.T) {
	k := newKit(t)
	k.damaged = true // VerifyDir refuses this journal too
	r := newRecord(t)
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r.Proof = &board.Proof{Method: board.ProofSignMsg, Hash: board.SHA256}
	for i := range 2 {
		nonce := bytes.Repeat([]byte{byte(i)}, 16)
		digest := sha256.Sum256(nonce)
		signature, err := ecdsa.SignASN1(rand.Reader, other, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		r.Proof.Nonces, r.Proof.Signatures = append(r.Proof.Nonces, nonce), append(r.Proof.Signatures, signature)
	}
	if _, err := k.append(r); err != nil {
		t.Fatal(err)
	}
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	data, err := journal.Prove(k.dir, r.Device)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.VerifyProof(data, k.id.Verifier); !errors.Is(err, journal.ErrProof) {
		t.Errorf("VerifyProof: %v, want %v", err, journal.ErrProof)
	}
}

// A proof holds though an entry before it is damaged, as its hash is kept.
func TestProveOverDamage(t *testing.T) {
	k, all := smallKit(t, 14)
	k.damaged = true
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	spoilSegment(t, k.dir, 0, func(b []byte) []byte { b[len(b)/2]++; return b })
	data, err := journal.Prove(k.dir, all[13].Device)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := journal.VerifyProof(data, k.id.Verifier); err != nil {
		t.Error(err)
	}
	os.Remove(journal.LeavesPath(k.dir, 0))
	if _, err := journal.Prove(k.dir, all[13].Device); !errors.Is(err, journal.ErrUnsigned) {
		t.Errorf("without the hash: %v, want %v", err, journal.ErrUnsigned)
	}
}

func TestConsistent(t *testing.T) {
	k, _ := smallKit(t, 10)
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	older, err := os.ReadFile(journal.CheckpointPath(k.dir))
	if err != nil {
		t.Fatal(err)
	}
	size := k.spool.tree.N
	copyDir := tempDir(t)
	if err := os.CopyFS(copyDir, os.DirFS(k.dir)); err != nil {
		t.Fatal(err)
	}
	k.mustAppend()
	if err := k.spool.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	newer, err := os.ReadFile(journal.CheckpointPath(k.dir))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"an older one": older, "the newest": newer} {
		if err := journal.Consistent(k.dir, k.id.Verifier, text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A clone of this machine, which has gone another way.
	if err := journal.Consistent(copyDir, k.id.Verifier, newer); !errors.Is(err, journal.ErrBehind) {
		t.Errorf("a clone that stands still: %v, want %v", err, journal.ErrBehind)
	}
	clone, err := Open(Config{Dir: copyDir, Identity: k.id, Sink: newMemorySink()})
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	for range 5 {
		if _, err := clone.Append(t.Context(), reading(newRecord(t))); err != nil {
			t.Fatal(err)
		}
	}
	if err := journal.Consistent(copyDir, k.id.Verifier, newer); !errors.Is(err, journal.ErrFork) {
		t.Errorf("a clone that goes on: %v, want %v", err, journal.ErrFork)
	}
	other, err := journal.LoadIdentity(tempDir(t), "widgiot/line3-a")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := journal.Checkpoint{Size: size, Root: k.spool.tree.Root()}.Encode(other.Signer)
	if err != nil {
		t.Fatal(err)
	}
	if err := journal.Consistent(k.dir, k.id.Verifier, foreign); !errors.Is(err, journal.ErrTampered) {
		t.Errorf("another key's: %v, want %v", err, journal.ErrTampered)
	}
}

func FuzzProof(f *testing.F) {
	p := journal.Proof{Entry: []byte(`{"seq":1}`), Index: 1, Checkpoint: []byte("a/b\n2\nAA==\n\n— a/b AA==\n")}
	f.Add(p.Encode())
	p.Hashes = append(p.Hashes, [32]byte{1}, [32]byte{2})
	f.Add(p.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := journal.ParseProof(data)
		if err != nil {
			return
		}
		if !bytes.Equal(p.Encode(), data) {
			t.Errorf("%q encodes to %q", data, p.Encode())
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	secret, public, err := note.GenerateKey(rand.Reader, "widgiot/line3-a")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		f.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("widgiot/line3-a\n12\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
	f.Add("widgiot/line3-a\n012\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
	f.Fuzz(func(t *testing.T, text string) {
		signed, err := note.Sign(&note.Note{Text: text}, signer)
		if err != nil {
			return
		}
		c, err := journal.ParseCheckpoint(signed, verifier)
		if err != nil {
			return
		}
		if again, err := c.Encode(signer); err != nil || !bytes.Equal(again, signed) {
			t.Errorf("%q encodes to %q (%v)", signed, again, err)
		}
		if _, bare, err := journal.CheckpointOf(signed); err != nil || bare != c {
			t.Errorf("without its signature %q reads as %+v (%v)", signed, bare, err)
		}
	})
}

func FuzzLeaves(f *testing.F) {
	l := journal.Leaves{Origin: "widgiot/line3-a", First: 7}
	f.Add(l.Encode())
	l.Hashes = append(l.Hashes, [32]byte{1}, [32]byte{})
	f.Add(l.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := journal.ParseLeaves(data)
		if err != nil {
			return
		}
		if !bytes.Equal(l.Encode(), data) {
			t.Errorf("%q encodes to %q", data, l.Encode())
		}
	})
}
