package claims

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/station/board"
)

func newClaimsDir(t testing.TB) (string, *Dir) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "claims")
	if err := InitDir(path); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return path, d
}

func TestClaimsDirRefusesFolders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "claims")
	refused := func(what, want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q in it", what, err, want)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := OpenDir(path)
	refused("a folder that is not there", "mount it", err)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = OpenDir(path)
	refused("an empty mount point", "not a folder of claims", err)
	write("root.key", "")
	refused("a folder of something else", `holds "root.key" already`, InitDir(path))
	if err := os.Remove(filepath.Join(path, "root.key")); err != nil {
		t.Fatal(err)
	}
	write(claimsLog, "x")
	refused("a log without its marker", "already", InitDir(path))
	write(claimsLog, "") // an attempt that broke off
	for range 2 {
		if err := InitDir(path); err != nil {
			t.Fatal(err)
		}
	}
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(path, claimsMarker)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(t.Context(), issuertest.Begun(issuertest.NewClaim(t, issuertest.Approved(t)))); err == nil {
		t.Error("a claim was made in a folder that went away")
	}
	write(claimsMarker, `{"version":3}`)
	if _, err := OpenDir(path); !errors.Is(err, board.ErrNewer) {
		t.Errorf("a newer folder: %v", err)
	}
	for _, text := range []string{`{"version":1}`, `x`} {
		write(claimsMarker, text)
		if _, err := OpenDir(path); !errors.Is(err, issuer.ErrBadClaim) {
			t.Errorf("the marker %s: %v", text, err)
		}
	}
	write(claimsMarker, `{"version":2}`)
	if err := os.Remove(filepath.Join(path, claimsLog)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path); err == nil {
		t.Error("a folder that lost its log was opened as one without claims")
	}
}

// Damage with something whole behind it is refused, and changes nothing. At the
// end it is what a crash leaves: it is put aside, and no answer was ever given
// for it.
func TestClaimsDirDamage(t *testing.T) {
	path, d := newClaimsDir(t)
	var last issuer.Issuance
	for range 3 {
		a := issuertest.Approved(t)
		first, err := d.Create(t.Context(), issuertest.Begun(issuertest.NewClaim(t, a)))
		if err != nil {
			t.Fatal(err)
		}
		if last, err = d.Replace(t.Context(), finished(t, a, first)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(path, claimsLog)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(good, []byte("\n"))[:6]
	relined := func(from, to string) []byte {
		text := bytes.Replace(lines[5][:len(lines[5])-10], []byte(from), []byte(to), 1)
		if bytes.Equal(text, lines[5][:len(lines[5])-10]) {
			t.Fatalf("nothing of %q to change", from)
		}
		return fmt.Appendf(text, " %08x\n", crc(text))
	}
	c := last.Claim
	for name, change := range map[string]struct {
		log     []byte
		refused bool
	}{
		"cut in the last line":           {log: good[:len(good)-20]},
		"cut before its line end":        {log: good[:len(good)-1]},
		"a flipped bit at the end":       {log: flipped(good, len(good)-30)},
		"garbage at the end":             {log: append(bytes.Clone(good), "garbage\nmore\n"...)},
		"a flipped bit":                  {log: flipped(good, 40), refused: true},
		"a line that is gone":            {log: bytes.Join([][]byte{lines[0], lines[2], lines[3]}, nil), refused: false},
		"a first line that is gone":      {log: bytes.Join(lines[1:], nil), refused: true},
		"a line twice":                   {log: bytes.Join([][]byte{lines[0], lines[1], lines[1]}, nil), refused: true},
		"a serial that changes":          {log: bytes.Join(append(lines[:5:5], relined(c.Serial.String(), strings.Repeat("1", 32))), nil), refused: true},
		"an unknown field":               {log: bytes.Join(append(lines[:5:5], relined(`{"device-id"`, `{"x":1,"device-id"`), lines[0]), nil), refused: true},
		"another device":                 {log: bytes.Join(append(lines[:5:5], relined(c.Device.String(), issuertest.NewBoard(t).ID.String())), nil), refused: true},
		"a last line of a newer version": {log: bytes.Join(append(lines[:5:5], relined(`{"device-id"`, `{"x":1,"device-id"`)), nil), refused: true},
		"a line that is far too long":    {log: bytes.Join([][]byte{lines[0], bytes.Repeat([]byte("x"), 3*maxClaimLine), []byte("\n"), lines[1]}, nil), refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			path, d := newClaimsDir(t)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(path, claimsLog)
			if err := os.WriteFile(file, change.log, 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := OpenDir(path)
			if change.refused {
				if !errors.Is(err, issuer.ErrBadClaim) {
					t.Fatalf("opened: %v", err)
				}
				if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, change.log) {
					t.Error("it was changed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			now, err := os.ReadFile(file)
			if err != nil || !bytes.HasPrefix(change.log, now) {
				t.Fatalf("the log is no longer the beginning of what it was: %v", err)
			}
			if kept := change.log[len(now):]; len(kept) > 0 {
				aside, err := os.ReadFile(filepath.Join(path, fmt.Sprintf("claims.torn-%d", len(now))))
				if err != nil || !bytes.Equal(aside, kept) {
					t.Errorf("what was cut is not kept: %v", err)
				}
			}
			checkClaims(t, d)
			if _, err := d.Create(t.Context(), issuertest.Begun(issuertest.NewClaim(t, issuertest.Approved(t)))); err != nil {
				t.Error(err)
			}
		})
	}
	checkClaims(t, d)
}

func flipped(data []byte, at int) []byte {
	out := bytes.Clone(data)
	out[at] ^= 1
	return out
}

// Processes on one machine share a folder: each has its own file, and sees what
// the others wrote.
func TestClaimsDirIsShared(t *testing.T) {
	path, first := newClaimsDir(t)
	second, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	a := issuertest.Approved(t)
	var wg sync.WaitGroup
	for _, d := range []*Dir{first, second} {
		for range 4 {
			wg.Go(func() {
				for range 8 {
					if _, err := d.Create(t.Context(), issuertest.Begun(issuertest.NewClaim(t, issuertest.Approved(t)))); err != nil {
						t.Error(err)
					}
					i, err := d.Create(t.Context(), issuertest.Begun(issuertest.NewClaim(t, a)))
					if err != nil {
						t.Error(err)
					}
					i.Version, i.CAState = i.Version+1, fmt.Sprintf("%p", d)
					if _, err := d.Replace(t.Context(), i); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	x, err := first.Issuances(t.Context(), a.Device())
	if err != nil || len(x) != 1 {
		t.Fatal(len(x), err)
	}
	y, err := second.Issuances(t.Context(), a.Device())
	if err != nil || len(y) != 1 || !same(x[0], y[0]) {
		t.Fatalf("%+v and %+v, %v", x, y, err)
	}
	checkClaims(t, first)
	checkClaims(t, second)
	checkClaimsDir(t, path)
}

// A disk that fails leaves nothing behind that counts, and takes nothing away
// that another process wrote meanwhile.
func TestClaimsDirFullDisk(t *testing.T) {
	for name, torn := range map[string]bool{"nothing was written": false, "half a line was written": true} {
		t.Run(name, func(t *testing.T) {
			path, d := newClaimsDir(t)
			a := issuertest.Approved(t)
			claim := issuertest.Begun(issuertest.NewClaim(t, a))
			if _, err := d.Create(t.Context(), claim); err != nil {
				t.Fatal(err)
			}
			// The log on a file that takes nothing, and whose end cannot be cut
			// either.
			closed, err := os.Open(filepath.Join(path, claimsLog))
			if err != nil {
				t.Fatal(err)
			}
			good := d.file
			d.file = closed
			if _, err := d.Replace(t.Context(), finished(t, a, claim)); err == nil {
				t.Fatal("a write to a file that takes none was reported as done")
			}
			d.file = good
			if err := closed.Close(); err != nil {
				t.Fatal(err)
			}
			if torn {
				if _, err := good.WriteString(`{"device-id":`); err != nil {
					t.Fatal(err)
				}
				info, err := good.Stat()
				if err != nil {
					t.Fatal(err)
				}
				d.brokenSize = info.Size()
			}
			// Another process goes on where the first one could not.
			other, err := OpenDir(path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			b := issuertest.Approved(t)
			theirs := issuertest.Begun(issuertest.NewClaim(t, b))
			if _, err := other.Create(t.Context(), theirs); err != nil {
				t.Fatal(err)
			}
			for who, claims := range map[string]*Dir{"the first": d, "the other": other} {
				for device, want := range map[board.DeviceID]issuer.Issuance{a.Device(): claim, b.Device(): theirs} {
					if of, err := claims.Issuances(t.Context(), device); err != nil || len(of) != 1 || !same(of[0], want) {
						t.Errorf("%s finds %+v, %v", who, of, err)
					}
				}
			}
			next := finished(t, a, claim)
			if got, err := d.Replace(t.Context(), next); err != nil || !same(got, next) {
				t.Errorf("afterwards: %v", err)
			}
			checkClaims(t, d)
			checkClaims(t, other)
			checkClaimsDir(t, path)
		})
	}
}

// Who reads does not wait for the disk, and sees nothing that is not on it.
func TestClaimsDirReadsMeanwhile(t *testing.T) {
	for _, fails := range []bool{false, true} {
		path, d := newClaimsDir(t)
		a, b := issuertest.Approved(t), issuertest.Approved(t)
		first, other := issuertest.Begun(issuertest.NewClaim(t, a)), issuertest.Begun(issuertest.NewClaim(t, b))
		if _, err := d.Create(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		reached, goOn := make(chan bool), make(chan error)
		d.fault = func(step string) error {
			if !strings.HasPrefix(step, "during") {
				return nil
			}
			reached <- true
			return <-goOn
		}
		next := finished(t, a, first)
		done := make(chan error)
		go func() {
			_, err := d.Replace(t.Context(), next)
			done <- err
		}()
		<-reached
		if of, err := d.Issuances(t.Context(), a.Device()); err != nil || len(of) != 1 || !same(of[0], first) {
			t.Errorf("meanwhile: %+v, %v", of, err)
		}
		if of, err := d.Issuances(t.Context(), b.Device()); err != nil || len(of) != 0 {
			t.Errorf("of another device: %+v, %v", of, err)
		}
		want := next
		if fails {
			want = first
			goOn <- issuertest.ErrInjected
		} else {
			goOn <- nil
		}
		if err := <-done; fails != errors.Is(err, issuertest.ErrInjected) {
			t.Errorf("written: %v", err)
		}
		if of, err := d.Issuances(t.Context(), a.Device()); err != nil || len(of) != 1 || !same(of[0], want) {
			t.Errorf("afterwards: %+v, %v", of, err)
		}
		d.fault = nil
		if _, err := d.Create(t.Context(), other); err != nil {
			t.Error(err)
		}
		checkClaims(t, d)
		checkClaimsDir(t, path)
	}
}

func TestClaimsDirLock(t *testing.T) {
	_, d := newClaimsDir(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Issuances(t.Context(), board.DeviceID{1}); !errors.Is(err, unix.EBADF) {
		t.Errorf("after Close: %v", err)
	}
}

func FuzzClaimLine(f *testing.F) {
	st, boards := issuertest.Fuzzed(f)
	item := issuertest.Enrolment(f, boards[0].Record(f, st), st)
	a, err := issuer.Decide(boards[0].CSR().Request(f), &item, issuer.Policy{SKU: issuertest.SKU, Stations: []board.Verifier{st.Verifier}}, item.EnrolledAt)
	if err != nil {
		f.Fatal(err)
	}
	i := issuertest.Begun(issuertest.NewClaim(f, a))
	for _, i := range []issuer.Issuance{i, finished(f, a, i)} {
		line, err := claimLine(i)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line[:len(line)-10])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		line := fmt.Appendf(bytes.Clone(data), " %08x", crc(data))
		i, length, err := parseClaimLine(line)
		if err != nil {
			return
		}
		again, err := claimLine(i)
		if err != nil || length != len(data) {
			t.Fatalf("what was read is not written: %v", err)
		}
		back, _, err := parseClaimLine(again[:len(again)-1])
		if err != nil || !same(back, i) {
			t.Fatalf("it reads back as %+v, %v", back, err)
		}
	})
}

func crc(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }
