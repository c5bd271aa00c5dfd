package cloud

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/smithy-go"

	"secretfree/station/board"
)

// A 200 is no proof. Whatever answers in the place of AWS, for one operation or
// for all: no record counts as enrolled that is not there, no error is a verdict,
// each says what to do, and the same batch later is enrolled.
func TestAnswersThatProveNothing(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		n := 0
		for _, lies := range []struct {
			name string
			fate fate
			says []string
		}{
			{"nothing", nothing, []string{"log this machine in to the network", "look for a proxy"}},
			{"a log-in page", page, []string{"log this machine in to the network"}},
			{"a redirection to one", login, []string{"log this machine in to the network"}},
			{"an empty object", believed, []string{"look for a proxy"}},
		} {
			for _, where := range []struct {
				name       string
				operations []string // empty: all
				proxies    []*proxy
			}{
				{"writing objects", []string{http.MethodPut}, []*proxy{b.s3}},
				{"writing items", []string{"TransactWriteItems"}, []*proxy{b.dynamo}},
				{"reading items back", []string{"TransactGetItems"}, []*proxy{b.dynamo}},
				{"all of the table", nil, []*proxy{b.dynamo}},
				{"all", nil, []*proxy{b.dynamo, b.s3}},
			} {
				if lies.fate == believed && where.operations != nil && where.operations[0] == http.MethodPut {
					continue // it returns the checksum, as only S3 does
				}
				t.Run(lies.name+"/"+where.name, func(t *testing.T) {
					var batch []board.Sealed
					for range 3 {
						n++
						batch = append(batch, sealed(t, n, n))
					}
					for _, p := range where.proxies {
						p.decide(func(r *http.Request) fate {
							if len(where.operations) > 0 && operation(r) != where.operations[0] {
								return passed
							}
							return lies.fate
						})
					}
					began := time.Now()
					r := b.open(t, "").(*AWS)
					results := r.PutBatch(t.Context(), batch)
					took := time.Since(began)
					b.dynamo.decide(nil)
					b.s3.decide(nil)
					for k, err := range results {
						if err == nil {
							t.Errorf("record %d is believed to be enrolled", k)
							continue
						}
						if isVerdict(err) || errors.Is(err, ErrDamaged) {
							t.Errorf("record %d: got the verdict %v", k, err)
						}
						if !containsOne(err.Error(), lies.says) || len(err.Error()) > 900 {
							t.Errorf("record %d: got %v, want one of %q", k, err, lies.says)
						}
					}
					if took > 20*time.Second {
						t.Errorf("it took %v", took)
					}
					for k, err := range b.open(t, "").PutBatch(t.Context(), batch) {
						if err != nil {
							t.Errorf("record %d, later: %v", k, err)
						}
					}
				})
			}
		}
		check(t, b)
	})
}

// The same holds for the archive, for what is looked up, and for listings: none
// says that there is nothing because nothing came.
func TestReadsThatProveNothing(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		r := once(b.open(t, "").(*AWS))
		s := sealed(t, 1, 1)
		must(t, r.Put(t.Context(), s))
		text := checkpointOf(t, line3, 10, 'A', 1)
		for _, f := range []fate{nothing, page, login} {
			b.dynamo.decide(func(*http.Request) fate { return f })
			b.s3.decide(func(*http.Request) fate { return f })
			for name, do := range map[string]func() error{
				"look up": func() error { _, err := r.Lookup(t.Context(), deviceN(1)); return err },
				"list items": func() error {
					for _, err := range r.Enrolments(t.Context()) {
						return err
					}
					return nil
				},
				"list objects": func() error {
					for _, err := range r.Objects(t.Context()) {
						return err
					}
					return nil
				},
				"store a segment":    func() error { return r.PutSegment(t.Context(), line3, 0, 9, []byte("{}\n")) },
				"store a checkpoint": func() error { return r.PutCheckpoint(t.Context(), line3, 10, text) },
				"ping":               func() error { _, _, err := r.Ping(t.Context()); return err },
			} {
				err := do()
				if err == nil || errors.Is(err, board.ErrNotEnrolled) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "log this machine in to the network") {
					t.Errorf("fate %d: %s: got %v", f, name, err)
				}
			}
			b.dynamo.decide(nil)
			b.s3.decide(nil)
		}
		// Only the writes are lost: the reads tell.
		b.s3.lose(http.MethodPut, nothing, -1)
		for name, err := range map[string]error{
			"segment":    r.PutSegment(t.Context(), line3, 0, 9, []byte("{}\n")),
			"checkpoint": r.PutCheckpoint(t.Context(), line3, 10, text),
		} {
			if !errors.Is(err, errNotHeld) || !strings.Contains(err.Error(), "look for a proxy") {
				t.Errorf("%s: got %v", name, err)
			}
		}
		b.s3.decide(nil)
		must(t, r.PutSegment(t.Context(), line3, 0, 9, []byte("{}\n")))
		must(t, r.PutCheckpoint(t.Context(), line3, 10, text))
	})
}

// What is read back and is not what was written is told, however it differs.
func TestConfirm(t *testing.T) {
	s := sealed(t, 1, 1)
	key := &board.KeyBinding{Device: deviceN(1), Key: s.Record().Fingerprint()}
	good := func() *item { return newItem(s, "", "bucket") }
	must(t, confirm(s, good(), good(), key))
	held := good()
	held.state = string(board.Held)
	must(t, confirm(s, good(), held, key))
	must(t, confirm(s, good(), newItem(seal(t, recordOf(t, "line4", 1, 1)), "", "bucket"), key)) // who was first
	for n, a := range good().attributes() {
		if a.name == "state" || a.name == "epoch" || a.name == "state-history" {
			continue
		}
		bad := good()
		*bad.attributes()[n].value += "0"
		if err := confirm(s, good(), bad, key); err == nil {
			t.Errorf("%s differs, and that is good", a.name)
		}
	}
	if err := confirm(s, good(), nil, nil); !errors.Is(err, errNotHeld) {
		t.Errorf("nothing is there: %v", err)
	}
	if err := confirm(s, good(), good(), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("no guard is there: %v", err)
	}
}

// An answer that makes no sense gets a sentence.
func TestSpoiledAnswerSentence(t *testing.T) {
	err := fmt.Errorf("operation error: %w", &smithy.DeserializationError{Err: io.ErrUnexpectedEOF})
	if got := explainTransport(err); !strings.Contains(got, "look for a proxy") {
		t.Errorf("got %q", got)
	}
}
