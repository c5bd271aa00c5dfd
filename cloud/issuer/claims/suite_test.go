package claims

import (
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

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/ca/catest"
	"secretfree/cloud/issuer/issuertest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/truora/minidyn/server"
)

// claimsBackend is a store under test. fail makes its next write fail: the step
// is "create" or "replace"; applied says that the write is done and only the
// answer is lost.
type claimsBackend struct {
	issuer.Claims
	fail func(step string, applied bool)
}

func claimsBackends() map[string]func(t *testing.T) claimsBackend {
	return map[string]func(t *testing.T) claimsBackend{
		"model": func(*testing.T) claimsBackend {
			m := &issuertest.Claims{}
			return claimsBackend{m, func(step string, applied bool) { m.Fault = issuertest.Once(when(applied) + " " + step) }}
		},
		"dir": func(t *testing.T) claimsBackend {
			path := filepath.Join(t.TempDir(), "claims")
			if err := InitDir(path); err != nil {
				t.Fatal(err)
			}
			d, err := OpenDir(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { checkClaimsDir(t, path) })
			t.Cleanup(func() { d.Close() })
			return claimsBackend{d, func(step string, applied bool) { d.fault = issuertest.Once(when(applied) + " " + step) }}
		},
		"minidyn": func(t *testing.T) claimsBackend {
			peer := server.NewServer()
			return newClaimsTable(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer := httptest.NewRecorder()
				peer.ServeHTTP(answer, r)
				// AWS sends the checksum; the client complains where there is
				// none.
				w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(answer.Body.Bytes())), 10))
				w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
				w.WriteHeader(answer.Code)
				_, _ = w.Write(answer.Body.Bytes())
			}))
		},
		"dynamodb": func(t *testing.T) claimsBackend {
			endpoint := os.Getenv("SECRETFREE_CLAIMS_ENDPOINT")
			if endpoint == "" {
				if os.Getenv("CI") == "true" {
					t.Fatal("SECRETFREE_CLAIMS_ENDPOINT is not set, and in CI this peer must be there")
				}
				t.Skip("needs DynamoDB Local: SECRETFREE_CLAIMS_ENDPOINT is not set")
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

	table := TableName(fmt.Sprintf("t%d", time.Now().UnixNano()))
	d, err := OpenDynamoDB(t.Context(), DynamoDBConfig{Table: table, Region: "us-east-1", Endpoint: front.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: aws.String(table),
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String(attrDevice), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String(attrClaim), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: []types.KeySchemaElement{
			{AttributeName: aws.String(attrDevice), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String(attrClaim), KeyType: types.KeyTypeRange},
		},
		BillingMode: types.BillingModePayPerRequest,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkClaimsTable(t, d) })
	return claimsBackend{d, func(step string, lost bool) {
		mu.Lock()
		defer mu.Unlock()
		operation, applied = map[string]string{"create": "TransactWriteItems", "replace": "PutItem"}[step], lost
	}}
}

// checkClaimsDir: a process that opens the folder anew finds what is there,
// whole.
func checkClaimsDir(t *testing.T, path string) {
	t.Helper()
	d, err := OpenDir(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer d.Close()
	checkClaims(t, d)
}

// checkClaims: every claim is found by its device and by its serial, once, and
// is as All gives it.
func checkClaims(t *testing.T, claims issuer.Claims) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	seen := map[string]bool{}
	for i, err := range claims.All(ctx) {
		if err != nil {
			t.Error(err)
			return
		}
		id := i.Claim.ID()
		if seen[id] {
			t.Errorf("%s is listed twice", id)
		}
		seen[id] = true
		if err := i.Check(); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		if got, err := claims.Serial(ctx, i.Claim.Serial); err != nil || storeIssuance(got) != storeIssuance(i) {
			t.Errorf("%s by its serial: %v", id, err)
		}
		of, err := claims.Issuances(ctx, i.Claim.Device)
		if err != nil {
			t.Errorf("%s by its device: %v", id, err)
		}
		found := 0
		for n, got := range of {
			if storeIssuance(got) == storeIssuance(i) {
				found++
			}
			if n > 0 && of[n-1].Claim.SortKey() >= got.Claim.SortKey() {
				t.Errorf("%s: not in order", id)
			}
		}
		if found != 1 {
			t.Errorf("%s is found %d times by its device", id, found)
		}
	}
}

// checkClaimsTable: every item is a claim that reads back, or the serial of
// one, with the attributes of the contract and no others.
func checkClaimsTable(t *testing.T, d *DynamoDB) {
	t.Helper()
	checkClaims(t, d)
	out, err := d.client.Scan(context.WithoutCancel(t.Context()), &dynamodb.ScanInput{TableName: aws.String(d.table)})
	if err != nil {
		t.Error(err)
		return
	}
	claims, serials := 0, 0
	for _, item := range out.Items {
		if strings.HasPrefix(textOf(item, attrDevice), serialPrefix) {
			serials++
			continue
		}
		claims++
		if i, err := claimFromDynamo(item); err != nil || len(item) != len(dynamoFromClaim(i)) {
			t.Errorf("%v: %v", item, err)
		}
	}
	if claims != serials {
		t.Errorf("%d claims and %d serials", claims, serials)
	}
}

// finished is the next version of i, with its certificate.
func finished(t testing.TB, a issuer.Approved, i issuer.Issuance) issuer.Issuance {
	t.Helper()
	out, err := catest.Local(t).Issue(t.Context(), a, i.Claim, nil)
	if err != nil {
		t.Fatal(err)
	}
	i.Version++
	i.State, i.Certificate, i.Activated = issuer.Live, &out, i.Claim.Created
	return i
}

func same(a, b issuer.Issuance) bool { return storeIssuance(a) == storeIssuance(b) }

func TestClaims(t *testing.T) {
	for name, open := range claimsBackends() {
		t.Run(name, func(t *testing.T) {
			backend := open(t)
			ctx := t.Context()
			create := func(i issuer.Issuance) issuer.Issuance {
				t.Helper()
				got, err := backend.Create(ctx, i)
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			t.Run("the first claim stays", func(t *testing.T) {
				a := issuertest.Approved(t)
				if got, err := backend.Issuances(ctx, a.Device()); err != nil || len(got) != 0 {
					t.Fatalf("before: %v, %v", got, err)
				}
				first, second := issuertest.Begun(issuertest.NewClaim(t, a)), issuertest.Begun(issuertest.NewClaim(t, a))
				if first.Claim.Serial == second.Claim.Serial {
					t.Fatal("two proposals have one serial")
				}
				first.Claim.AltName = "urn:dev:ops:widgiot-" + a.Device().String()
				if got := create(first); !same(got, first) {
					t.Fatalf("%+v", got)
				}
				if got := create(second); !same(got, first) {
					t.Fatalf("%+v", got)
				}
				if _, err := backend.Serial(ctx, second.Claim.Serial); !errors.Is(err, issuer.ErrNoClaim) {
					t.Fatalf("the serial that lost: %v", err)
				}
				later := issuertest.Begun(issuertest.NewClaim(t, a))
				later.Claim.Epoch = 12
				create(later)
				between := issuertest.Begun(issuertest.NewClaim(t, a))
				between.Claim.Epoch = 2
				create(between)
				of, err := backend.Issuances(ctx, a.Device())
				if err != nil || len(of) != 3 || !same(of[0], first) || !same(of[1], between) || !same(of[2], later) {
					t.Fatalf("%+v, %v", of, err)
				}
			})
			t.Run("the first of a version stays", func(t *testing.T) {
				a := issuertest.Approved(t)
				first := create(issuertest.Begun(issuertest.NewClaim(t, a)))
				noted := first
				noted.Version, noted.CAState = 2, "noted"
				if got, err := backend.Replace(ctx, noted); err != nil || !same(got, noted) {
					t.Fatal(err)
				}
				if got, err := backend.Replace(ctx, noted); err != nil || !same(got, noted) {
					t.Fatalf("the same again: %v", err)
				}
				if got, err := backend.Replace(ctx, finished(t, a, first)); err != nil || !same(got, noted) {
					t.Fatalf("from the version before: %+v, %v", got, err)
				}
				last := finished(t, a, noted)
				if got, err := backend.Replace(ctx, last); err != nil || !same(got, last) {
					t.Fatal(err)
				}
				if got := create(issuertest.Begun(issuertest.NewClaim(t, a))); !same(got, last) {
					t.Fatalf("%+v", got)
				}
			})
			t.Run("nothing to replace", func(t *testing.T) {
				a := issuertest.Approved(t)
				if _, err := backend.Replace(ctx, finished(t, a, issuertest.Begun(issuertest.NewClaim(t, a)))); !errors.Is(err, issuer.ErrNoClaim) {
					t.Fatalf("without a claim: %v", err)
				}
			})
			t.Run("what no issuance can be", func(t *testing.T) {
				a := issuertest.Approved(t)
				bad := issuertest.Begun(issuertest.NewClaim(t, a))
				bad.State = "lost"
				if _, err := backend.Create(ctx, bad); err == nil && name != "model" {
					t.Error("an unknown state was stored")
				}
				if of, err := backend.Issuances(ctx, a.Device()); err != nil || len(of) != 0 && name != "model" {
					t.Errorf("%v, %v", of, err)
				}
				if m, ok := backend.Claims.(*issuertest.Claims); ok {
					delete(m.Stored, bad.Claim.ID())
				}
			})
			t.Run("a race has one winner", func(t *testing.T) {
				a := issuertest.Approved(t)
				const racers = 16
				got := make([]issuer.Issuance, racers)
				var wg sync.WaitGroup
				for i := range racers {
					wg.Go(func() {
						stored, err := backend.Create(ctx, issuertest.Begun(issuertest.NewClaim(t, a)))
						if err != nil {
							t.Error(err)
							return
						}
						if stored.Version > 1 { // another one is done already
							got[i] = stored
							return
						}
						stored.CAState = fmt.Sprint("racer ", i)
						if got[i], err = backend.Replace(ctx, finished(t, a, stored)); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				for i := range racers {
					if !same(got[i], got[0]) {
						t.Errorf("racer %d met another claim or certificate", i)
					}
				}
			})
			for _, step := range []string{"create", "replace"} {
				for _, applied := range []bool{false, true} {
					t.Run(fmt.Sprintf("the %s fails, applied %v", step, applied), func(t *testing.T) {
						a := issuertest.Approved(t)
						i := issuertest.Begun(issuertest.NewClaim(t, a))
						if step == "replace" {
							create(i)
							i = finished(t, a, i)
						}
						write := func(i issuer.Issuance) (issuer.Issuance, error) {
							if step == "create" {
								return backend.Create(ctx, i)
							}
							return backend.Replace(ctx, i)
						}
						backend.fail(step, applied)
						if _, err := write(i); !applied && err == nil {
							t.Fatal("a write that was not done was reported as done")
						}
						of, err := backend.Issuances(ctx, a.Device())
						if err != nil {
							t.Fatal(err)
						}
						if done := len(of) == 1 && same(of[0], i); done != applied {
							t.Fatalf("applied %v, and it is there: %v", applied, done)
						}
						if got, err := write(i); err != nil || !same(got, i) {
							t.Fatalf("again: %v", err)
						}
					})
				}
			}
			checkClaims(t, backend.Claims)
		})
	}
}

func TestClaimsDynamoDBNeedsATable(t *testing.T) {
	for _, c := range []DynamoDBConfig{{Region: "us-east-1"}, {Table: "t"}} {
		if _, err := OpenDynamoDB(t.Context(), c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
	if got := TableName("widgiot"); got != "widgiot-iot-issuance" {
		t.Error(got)
	}
}

// What is equal is stored alike, and the reverse.
func TestIssuancesEqual(t *testing.T) {
	a := issuertest.Approved(t)
	first := issuertest.Begun(issuertest.NewClaim(t, a))
	last := finished(t, a, first)
	change := func(i issuer.Issuance, do func(i *issuer.Issuance)) issuer.Issuance { do(&i); return i }
	all := []issuer.Issuance{
		first, last,
		change(first, func(i *issuer.Issuance) { i.CAState = "x" }), change(first, func(i *issuer.Issuance) { i.Version = 2 }),
		change(first, func(i *issuer.Issuance) { i.Claim.Epoch = 2 }), change(first, func(i *issuer.Issuance) { i.Claim.Serial[0]++ }),
		change(first, func(i *issuer.Issuance) { i.Claim.NotBefore = i.Claim.NotBefore.Add(time.Second) }),
		change(first, func(i *issuer.Issuance) { i.Claim.NotAfter = i.Claim.NotAfter.Add(time.Second) }),
		change(first, func(i *issuer.Issuance) { i.Claim.Created = i.Claim.Created.Add(time.Second) }),
		change(first, func(i *issuer.Issuance) { i.Claim.Org = "x" }), change(first, func(i *issuer.Issuance) { i.Claim.AltName = "urn:dev:x" }), change(first, func(i *issuer.Issuance) { i.Claim.Challenge = "x" }),
		change(first, func(i *issuer.Issuance) {
			i.State, i.Revoked, i.Reason = issuer.Revoking, i.Claim.Created, issuer.KeyCompromise
		}),
		change(first, func(i *issuer.Issuance) {
			i.State, i.Revoked, i.Reason = issuer.Revoking, i.Claim.Created, issuer.Superseded
		}),
		change(last, func(i *issuer.Issuance) { i.Activated = i.Activated.Add(time.Second) }),
		change(last, func(i *issuer.Issuance) {
			i.Certificate = &issuer.Certificate{Leaf: []byte("x"), Chain: i.Certificate.Chain}
		}),
		change(last, func(i *issuer.Issuance) { i.Certificate = &issuer.Certificate{Leaf: i.Certificate.Leaf} }),
	}
	for n, x := range all {
		for m, y := range all {
			if got, want := x.Equal(y), storeIssuance(x) == storeIssuance(y); got != want || want != (n == m) {
				t.Errorf("%d and %d: equal %v, stored alike %v", n, m, got, want)
			}
		}
	}
}
