package issuer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/truora/minidyn/server"

	"secretfree/station/board"
)

// claimsBackend is a store under test. fail makes its next write fail: the step is "claim" or "finish"; applied says that
// the write is done and only the answer is lost.
type claimsBackend struct {
	Claims
	fail func(step string, applied bool)
}

func claimsBackends() map[string]func(t *testing.T) claimsBackend {
	return map[string]func(t *testing.T) claimsBackend{
		"model": func(*testing.T) claimsBackend {
			m := &memClaims{}
			return claimsBackend{m, func(step string, applied bool) { m.fault = once(when(applied) + " " + step) }}
		},
		"dir": func(t *testing.T) claimsBackend {
			path := filepath.Join(t.TempDir(), "claims")
			if err := InitClaimsDir(path); err != nil {
				t.Fatal(err)
			}
			d, err := OpenClaimsDir(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { checkClaimsDir(t, path) })
			return claimsBackend{d, func(step string, applied bool) {
				d.fault = once(when(applied) + " " + map[string]string{"claim": ".claim", "finish": ".cert"}[step])
			}}
		},
		"minidyn": func(t *testing.T) claimsBackend {
			peer := server.NewServer()
			return newClaimsTable(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer := httptest.NewRecorder()
				peer.ServeHTTP(answer, r)
				// AWS sends the checksum; the client complains where there is none.
				w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(answer.Body.Bytes())), 10))
				w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
				w.WriteHeader(answer.Code)
				_, _ = w.Write(answer.Body.Bytes())
			}))
		},
		"dynamodb": func(t *testing.T) claimsBackend {
			endpoint := os.Getenv("SECRETFREE_DYNAMODB_ENDPOINT")
			if endpoint == "" {
				if os.Getenv("CI") == "true" {
					t.Fatal("SECRETFREE_DYNAMODB_ENDPOINT is not set, and in CI this peer must be there")
				}
				t.Skip("needs DynamoDB Local: SECRETFREE_DYNAMODB_ENDPOINT is not set")
			}
			return newClaimsTable(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { forward(w, r, endpoint) }))
		},
	}
}

func when(applied bool) string {
	if applied {
		return "after"
	}
	return "before"
}

func forward(w http.ResponseWriter, r *http.Request, endpoint string) {
	out, err := http.NewRequestWithContext(r.Context(), r.Method, endpoint, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	out.Header = r.Header.Clone()
	out.Host = r.Host // it is signed
	answer, err := http.DefaultClient.Do(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	for name, values := range answer.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.StatusCode)
	_, _ = io.Copy(w, answer.Body)
}

// newClaimsTable makes a table on a peer, behind a door that can fail.
func newClaimsTable(t *testing.T, peer http.Handler) claimsBackend {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CA_BUNDLE", "")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)

	var mu sync.Mutex
	var operation string // fails next
	var applied bool
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		hit := operation != "" && strings.HasSuffix(r.Header.Get("X-Amz-Target"), "."+operation)
		lost := applied
		if hit {
			operation = ""
		}
		mu.Unlock()
		switch {
		case hit && lost:
			peer.ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler) // the connection breaks; the client asks again and meets its own write
		case hit:
			body := []byte(`{"__type":"com.amazonaws.dynamodb.v20120810#AccessDeniedException","message":"injected"}`)
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(body)), 10))
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write(body)
		default:
			peer.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(front.Close)

	table := ClaimsTable(fmt.Sprintf("t%d", time.Now().UnixNano()))
	d, err := OpenClaimsDynamoDB(t.Context(), ClaimsDynamoDBConfig{Table: table, Region: "us-east-1", Endpoint: front.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName:            aws.String(table),
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String(attrClaimID), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String(attrClaimID), KeyType: types.KeyTypeHash}},
		BillingMode:          types.BillingModePayPerRequest,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkClaimsTable(t, d) })
	return claimsBackend{d, func(step string, lost bool) {
		mu.Lock()
		defer mu.Unlock()
		operation, applied = map[string]string{"claim": "PutItem", "finish": "UpdateItem"}[step], lost
	}}
}

// checkClaimsDir: every file is a claim, or the certificate of one, and reads back.
func checkClaimsDir(t *testing.T, path string) {
	t.Helper()
	d, err := OpenClaimsDir(path)
	if err != nil {
		t.Error(err)
		return
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Error(err)
	}
	for _, entry := range entries {
		if entry.Name() == claimsMarker {
			continue
		}
		id, kind, _ := strings.Cut(entry.Name(), ".")
		claim, err := d.claim(id)
		if err != nil {
			t.Errorf("%s: %v", entry.Name(), err)
			continue
		}
		switch kind {
		case "claim":
		case "cert":
			if _, err := d.certificate(claim); err != nil {
				t.Errorf("%s: %v", entry.Name(), err)
			}
		default:
			t.Errorf("%s should not be here", entry.Name())
		}
	}
}

// checkClaimsTable: every item is a claim that reads back, with the attributes of the contract and no others.
func checkClaimsTable(t *testing.T, d *ClaimsDynamoDB) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	out, err := d.client.Scan(ctx, &dynamodb.ScanInput{TableName: aws.String(d.table)})
	if err != nil {
		t.Error(err)
		return
	}
	for _, item := range out.Items {
		id, _ := item[attrClaimID].(*types.AttributeValueMemberS)
		if id == nil {
			t.Errorf("an item without %s", attrClaimID)
			continue
		}
		issuance, found, err := d.read(ctx, id.Value)
		if err != nil || !found {
			t.Errorf("%s: %v", id.Value, err)
		}
		want := 8
		if issuance.Certificate != nil {
			want += 2
		}
		if len(item) != want {
			t.Errorf("%s has %d attributes, want %d: %v", id.Value, len(item), want, item)
		}
	}
}

// approvedFor is what Decide gives for a new board.
func approvedFor(t testing.TB) Approved {
	t.Helper()
	st, b := newStation(t, testSKU, "line3-a"), newSimulated(t)
	item := enrolment(t, b.record(t, st), st)
	a, err := Decide(b.csr().request(t), &item, Policy{SKU: testSKU, Stations: []board.Verifier{st.verifier}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func mustClaim(t testing.TB, a Approved) Claim {
	t.Helper()
	c, err := newClaim(a, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClaims(t *testing.T) {
	for name, open := range claimsBackends() {
		t.Run(name, func(t *testing.T) {
			backend := open(t)
			ctx := t.Context()
			sign := func(a Approved, c Claim) Certificate {
				t.Helper()
				out, err := localCA(t).Issue(ctx, a, c)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}

			t.Run("the first claim stays", func(t *testing.T) {
				a := approvedFor(t)
				first := mustClaim(t, a)
				got, err := backend.Claim(ctx, first)
				if err != nil || got.Claim != first || got.Certificate != nil {
					t.Fatalf("%+v, %v", got, err)
				}
				second := mustClaim(t, a)
				if second.Serial == first.Serial {
					t.Fatal("two proposals have one serial")
				}
				if got, err = backend.Claim(ctx, second); err != nil || got.Claim != first {
					t.Fatalf("%+v, %v", got, err)
				}
				other := a
				other.generation++
				if got, err = backend.Claim(ctx, mustClaim(t, other)); err != nil || got.Claim.Generation != 2 {
					t.Fatalf("another generation is another claim: %+v, %v", got, err)
				}
			})
			t.Run("the first certificate stays", func(t *testing.T) {
				a := approvedFor(t)
				claim := mustClaim(t, a)
				if _, err := backend.Claim(ctx, claim); err != nil {
					t.Fatal(err)
				}
				first := sign(a, claim)
				if got, err := backend.Finish(ctx, claim, first); err != nil || !equal(got, first) {
					t.Fatal(err)
				}
				later := claim
				later.NotAfter = later.NotAfter.Add(-time.Hour)
				if got, err := backend.Finish(ctx, claim, sign(a, later)); err != nil || !equal(got, first) {
					t.Fatalf("the second certificate replaced the first, or %v", err)
				}
				got, err := backend.Claim(ctx, mustClaim(t, a))
				if err != nil || got.Claim != claim || got.Certificate == nil || !equal(*got.Certificate, first) {
					t.Fatalf("%+v, %v", got, err)
				}
			})
			t.Run("nothing to finish", func(t *testing.T) {
				a := approvedFor(t)
				claim := mustClaim(t, a)
				if _, err := backend.Finish(ctx, claim, sign(a, claim)); !errors.Is(err, ErrNoClaim) {
					t.Fatalf("without a claim: %v", err)
				}
				if _, err := backend.Claim(ctx, claim); err != nil {
					t.Fatal(err)
				}
				other := mustClaim(t, a)
				if _, err := backend.Finish(ctx, other, sign(a, other)); !errors.Is(err, ErrNoClaim) {
					t.Fatalf("under another serial: %v", err)
				}
			})
			t.Run("a race has one winner", func(t *testing.T) {
				a := approvedFor(t)
				const racers = 16
				claims, certificates := make([]Claim, racers), make([]Certificate, racers)
				var wg sync.WaitGroup
				for i := range racers {
					wg.Go(func() {
						got, err := backend.Claim(ctx, mustClaim(t, a))
						if err != nil {
							t.Error(err)
							return
						}
						claims[i] = got.Claim
						varied := got.Claim // so that each has another certificate to offer
						varied.NotAfter = varied.NotAfter.Add(-time.Duration(i) * time.Second)
						if certificates[i], err = backend.Finish(ctx, got.Claim, sign(a, varied)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				for i := range racers {
					if claims[i] != claims[0] || !equal(certificates[i], certificates[0]) {
						t.Errorf("racer %d met another claim or certificate", i)
					}
				}
			})
			for _, step := range []string{"claim", "finish"} {
				for _, applied := range []bool{false, true} {
					t.Run(fmt.Sprintf("the %s fails, applied %v", step, applied), func(t *testing.T) {
						a := approvedFor(t)
						claim := mustClaim(t, a)
						if step == "finish" {
							if _, err := backend.Claim(ctx, claim); err != nil {
								t.Fatal(err)
							}
						}
						backend.fail(step, applied)
						certificate := sign(a, claim)
						var first error
						if step == "claim" {
							_, first = backend.Claim(ctx, claim)
						} else {
							_, first = backend.Finish(ctx, claim, certificate)
						}
						if !applied && first == nil {
							t.Fatal("a write that was not done was reported as done")
						}
						// Again, as a retry does: with a new proposal.
						got, err := backend.Claim(ctx, mustClaim(t, a))
						if err != nil {
							t.Fatal(err)
						}
						if (applied || step == "finish") && got.Claim != claim {
							t.Fatal("the claim that was stored is not the one that a retry meets")
						}
						if stored := got.Certificate != nil; stored != (step == "finish" && applied) {
							t.Fatalf("a certificate is stored: %v", stored)
						}
						if out, err := backend.Finish(ctx, got.Claim, sign(a, got.Claim)); err != nil || got.Claim == claim && !equal(out, certificate) {
							t.Fatalf("finishing again: %v", err)
						}
					})
				}
			}
		})
	}
}

func TestClaimsDirRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "claims")
	if _, err := OpenClaimsDir(path); err == nil || !strings.Contains(err.Error(), "mount it") {
		t.Errorf("a folder that is not there: %v", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenClaimsDir(path); err == nil || !strings.Contains(err.Error(), "not a folder of claims") {
		t.Errorf("an empty mount point: %v", err)
	}
	// Another file than what an init that broke off leaves behind.
	for _, name := range []string{claimTempPrefix + "1", "root.key"} {
		if err := os.WriteFile(filepath.Join(path, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := InitClaimsDir(path); err == nil || !strings.Contains(err.Error(), `holds "root.key" already`) {
		t.Errorf("a folder of something else: %v", err)
	}
	if err := os.Remove(filepath.Join(path, "root.key")); err != nil {
		t.Fatal(err)
	}
	if err := InitClaimsDir(path); err != nil {
		t.Fatal(err)
	}
	if err := InitClaimsDir(path); err != nil {
		t.Errorf("making it twice: %v", err)
	}
	if err := os.Remove(filepath.Join(path, claimTempPrefix+"1")); err != nil {
		t.Fatal(err)
	}
	d, err := OpenClaimsDir(path)
	if err != nil {
		t.Fatal(err)
	}
	a := approvedFor(t)
	claim := mustClaim(t, a)
	if _, err := d.Claim(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	marker := filepath.Join(path, claimsMarker)
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(marker)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(marker); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Claim(t.Context(), claim); err == nil {
		t.Error("a claim was made in a folder that went away")
	}
	write(marker, `{"version":2}`)
	if _, err := OpenClaimsDir(path); !errors.Is(err, board.ErrNewer) {
		t.Errorf("a newer folder: %v", err)
	}
	write(marker, `{"version":0}`)
	if _, err := OpenClaimsDir(path); !errors.Is(err, ErrBadClaim) {
		t.Errorf("a folder of version 0: %v", err)
	}
	write(marker, string(whole))

	file := filepath.Join(path, claim.ID()+".claim")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"torn":             string(good[:20]),
		"empty":            "",
		"an unknown field": strings.Replace(string(good), `{"version"`, `{"x":1,"version"`, 1),
		"a newer version":  strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"another device":   strings.Replace(string(good), `"device-id":"`+a.device.String(), `"device-id":"`+newSimulated(t).id.String(), 1),
		"no serial":        strings.Replace(string(good), claim.Serial.String(), strings.Repeat("0", 32), 1),
		"no time":          strings.Replace(string(good), claim.NotAfter.Format(time.RFC3339), "tomorrow", 1),
		"no time at all":   strings.Replace(string(good), claim.NotAfter.Format(time.RFC3339), claim.NotBefore.Format(time.RFC3339), 1),
		"something after":  string(good) + "{}",
		"too long":         string(good) + strings.Repeat(" ", maxClaimFile),
	} {
		write(file, bad)
		if bad == string(good) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := d.Claim(t.Context(), claim); !errors.Is(err, ErrBadClaim) {
			t.Errorf("%s: %v", name, err)
		}
	}
	write(file, string(good))
	certificate, err := localCA(t).Issue(t.Context(), a, claim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Finish(t.Context(), claim, certificate); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(path, claim.ID()+".cert")
	if good, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"torn":           good[:200],
		"another serial": bytes.Replace(good, []byte(claim.Serial.String()), []byte(strings.Repeat("1", 32)), 1),
		"no PEM":         bytes.ReplaceAll(good, []byte("BEGIN"), []byte("BEGUN")),
		"two leaves":     bytes.Replace(good, []byte(`","certificate-chain":"`), []byte(``), 1),
		"a damaged line": bytes.Replace(good, []byte(`-----\nMII`), []byte(`-----\n MII`), 1),
	} {
		write(file, string(bad))
		if _, err := d.Claim(t.Context(), claim); !errors.Is(err, ErrBadClaim) {
			t.Errorf("certificate, %s: %v", name, err)
		}
	}
	write(file, string(good))
	checkClaimsDir(t, path)
}

// What a crash leaves behind is cleared away, but not under another process's hands.
func TestClaimsDirClearsUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "claims")
	if err := InitClaimsDir(path); err != nil {
		t.Fatal(err)
	}
	young, old := filepath.Join(path, claimTempPrefix+"1"), filepath.Join(path, claimTempPrefix+"2")
	for _, file := range []string{young, old} {
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * abandonedTemp)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenClaimsDir(path); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the young one: %v", err)
	}
}

func TestClaimsDynamoDBNeedsATable(t *testing.T) {
	for _, c := range []ClaimsDynamoDBConfig{{Region: "us-east-1"}, {Table: "t"}} {
		if _, err := OpenClaimsDynamoDB(t.Context(), c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if got := ClaimsTable("widgiot"); got != "widgiot-iot-issuance" {
		t.Error(got)
	}
}
