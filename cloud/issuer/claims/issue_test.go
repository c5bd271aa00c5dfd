package claims

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"
	"secretfree/cloud/issuer/server"
)

func TestIssueAtOnce(t *testing.T) {
	for name, open := range claimsBackends() {
		if name == "dynamodb" {
			continue // the same code as minidyn; TestClaims runs there
		}
		t.Run(name, func(t *testing.T) {
			w := issuertest.NewEnv(t, catest.Local(t))
			w.Open(t, open(t).Claims)
			const callers = 16
			got := make([]issuer.Certificate, callers)
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					var err error
					if got[i], err = w.Issuer.Issue(t.Context(), w.Board.CSR().Request(t), issuertest.CAName); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for i := range callers {
				if !issuertest.Equal(got[i], got[0]) {
					t.Errorf("caller %d got another certificate", i)
				}
			}
			if len(w.CA.Issued) != 1 {
				t.Errorf("%d different certificates were signed", len(w.CA.Issued))
			}
		})
	}
}

// A failure at any step, before or after it took effect, leaves what a later
// request goes on from; a new Issuer stands for a process that was started
// again.
func TestIssueGoesOn(t *testing.T) {
	for name, open := range claimsBackends() {
		if name == "dynamodb" {
			continue // the same code as minidyn; TestClaims runs there
		}
		for _, step := range []string{"create", "sign", "replace"} {
			for _, applied := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s fails, applied %v", name, step, applied), func(t *testing.T) {
					w := issuertest.NewEnv(t, catest.Local(t))
					backend := open(t)
					w.Open(t, backend.Claims)
					fault := issuertest.Once("now")
					switch {
					case step != "sign":
						backend.fail(step, applied)
					case applied:
						w.CA.After = func(*issuer.Certificate) error { return fault("now") }
					default:
						w.CA.Before = func() error { return fault("now") }
					}
					request := w.Board.CSR().Request(t)
					first, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName)
					if err == nil && (!applied || step == "sign") {
						t.Fatal("a failure was reported as success")
					}
					if err != nil {
						if outcome, _ := server.Classify(err); outcome != server.TryLater {
							t.Errorf("a stranger would read %q: %v", outcome, err)
						}
					}
					w.Open(t, backend.Claims)
					second, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName)
					if err != nil {
						t.Fatal(err)
					}
					third, err := w.Issuer.Issue(t.Context(), request, issuertest.CAName)
					if err != nil || !issuertest.Equal(second, third) || first.Leaf != nil && !issuertest.Equal(first, second) {
						t.Errorf("the retries differ, or %v", err)
					}
					if len(w.CA.Issued) != 1 {
						t.Errorf("%d different certificates were signed", len(w.CA.Issued))
					}
				})
			}
		}
	}
}

// Two thousand requests of a hundred devices at once, while every remote call
// fails now and then, before or after it took effect, and issuers die and are
// started again. Devices ask until they have an answer. Then each has one
// certificate in each epoch, the same for all who asked, and after a sweep
// nothing else is active.
func TestIssueInAStorm(t *testing.T) {
	t.Run("model", func(t *testing.T) {
		l := issuertest.NewRegisteredEnv(t, catest.Local(t))
		storm(t, l, 2000, func(fault func(string) error) { l.Claims.Fault = fault })
	})
	t.Run("dir", func(t *testing.T) {
		l := issuertest.NewRegisteredEnv(t, catest.Local(t))
		_, d := newClaimsDir(t)
		l.Store = d
		storm(t, l, 400, func(fault func(string) error) { d.fault = fault })
	})
}

func storm(t *testing.T, l *issuertest.RegisteredEnv, requests int, inject func(func(string) error)) {
	const (
		devices = 100
		workers = 64
	)
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	var (
		mu     sync.Mutex
		random = rand.New(rand.NewPCG(uint64(seed), 1))
		calm   bool
	)
	fault := func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if calm || random.IntN(8) > 0 {
			return nil
		}
		return issuertest.ErrInjected
	}
	inject(fault)
	l.Registry.Fault, l.Registrar.Fault = fault, fault
	l.CA.Before = func() error { return fault("") }
	l.CA.After = func(*issuer.Certificate) error { return fault("") }
	asks := make([]issuer.Request, devices)
	for i := range asks {
		b := issuertest.NewBoard(t)
		l.Registry.Put(issuertest.Enrolment(t, b.Record(t, l.Station), l.Station))
		asks[i] = b.CSR().Request(t)
	}
	// Any number of issuers, in several processes.
	l.Restart(t)
	config := l.Config
	issuers := make([]*issuer.Issuer, 4)
	for i := range issuers {
		var err error
		if issuers[i], err = issuer.New(config); err != nil {
			t.Fatal(err)
		}
	}
	var (
		answers = make([]map[string]bool, devices)
		work    = make(chan int)
		group   sync.WaitGroup
		dead    int
	)
	for i := range answers {
		answers[i] = map[string]bool{}
	}
	for range workers {
		group.Go(func() {
			for n := range work {
				at := n % devices
				for try := 0; ; try++ {
					if try > 500 {
						t.Errorf("device %d has no answer after %d tries", at, try)
						break
					}
					slot := (n + try) % len(issuers)
					mu.Lock()
					iss := issuers[slot]
					mu.Unlock()
					got, err := iss.Issue(t.Context(), asks[at], issuertest.CAName)
					if err == nil {
						mu.Lock()
						answers[at][string(got.Leaf)] = true
						mu.Unlock()
						break
					}
					if outcome, _ := server.Classify(err); outcome != server.TryLater {
						t.Errorf("device %d was refused: %v", at, err)
						break
					}
					again, newErr := issuer.New(config) // it has died with all that it was doing
					mu.Lock()
					dead++
					issuers[slot] = again
					mu.Unlock()
					if newErr != nil {
						t.Error(newErr)
					}
				}
			}
		})
	}
	for n := range requests {
		work <- n
	}
	close(work)
	group.Wait()
	if dead == 0 {
		t.Error("nothing failed")
	}
	calm = true
	for i, of := range answers {
		if len(of) != 1 {
			t.Errorf("device %d got %d certificates", i, len(of))
		}
	}
	stored := 0
	for _, err := range l.Store.All(t.Context()) {
		if err != nil {
			t.Error(err)
		}
		stored++
	}
	if stored != devices {
		t.Errorf("%d claims for %d devices", stored, devices)
	}
	checkClaims(t, l.Store)
	l.Now = l.Now.Add(time.Hour)
	l.Sweep(t, true)
	l.Settled(t)
	if len(l.Registrar.Active) != devices {
		t.Errorf("%d are active, want %d", len(l.Registrar.Active), devices)
	}
	t.Logf("%d tries failed for %d requests", dead, requests)
}
