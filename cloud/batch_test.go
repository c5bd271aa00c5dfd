package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"secretfree/station/board"
)

func testBatch(t *testing.T, b backend) {
	if results := b.open(t, "").PutBatch(t.Context(), nil); len(results) != 0 {
		t.Errorf("a batch of nothing: got %v", results)
	}
	var records []board.Sealed
	for n := range transactionDevices + 3 {
		records = append(records, sealed(t, n, n))
	}
	for range 2 { // for the first time, and again
		for n, err := range b.open(t, "").PutBatch(t.Context(), records) {
			if err != nil {
				t.Errorf("record %d: %v", n, err)
			}
		}
		if got := len(b.items(t)); got != 2*len(records) {
			t.Errorf("%d items and guards, want %d", got, 2*len(records))
		}
	}
	check(t, b)
	// What a batch writes is what a Put writes.
	before := b.items(t)
	alone := b.items(t)
	device, key := deviceN(7).String(), guardID(keyN(t, 7).Fingerprint())
	b.remove(t, device)
	b.remove(t, key)
	must(t, b.open(t, "").Put(t.Context(), records[7]))
	alone[device], alone[key] = b.items(t)[device], b.items(t)[key]
	if diff := cmp.Diff(before, alone); diff != "" {
		t.Errorf("a batch and a Put (-batch +Put):\n%s", diff)
	}
}

// Each record gets the verdict that it would get alone.
func testBatchVerdicts(t *testing.T, b backend) {
	r := b.open(t, "")
	for n := range 5 {
		must(t, r.Put(t.Context(), sealed(t, n, n)))
	}
	b.setObject(t, objectName(deviceN(5), keyN(t, 5).Fingerprint()), "no key")
	b.set(t, map[string]string{"device-id": deviceN(6).String(), "pubkey": string(keyN(t, 6).PEM())})
	broken := maps.Clone(b.items(t)[deviceN(4).String()])
	broken["state"] = "Active"
	b.set(t, broken)

	batch := []board.Sealed{
		sealed(t, 10, 10),
		sealed(t, 0, 0),
		sealed(t, 1, 11),
		sealed(t, 12, 2),
		{},
		sealed(t, 4, 4),
		sealed(t, 5, 5),
		{},
		sealed(t, 6, 6),
		seal(t, recordOf(t, "line4", 3, 3)),
		sealed(t, 13, 13),
	}
	wants := map[int]error{
		2: board.ErrDeviceConflict, 3: board.ErrKeyConflict, 4: board.ErrEnvelope, 5: ErrDamaged, 6: ErrDamaged,
		7: board.ErrEnvelope, 8: ErrUnsigned,
	}
	for range 2 {
		results := r.PutBatch(t.Context(), batch)
		if len(results) != len(batch) {
			t.Fatalf("%d results for %d records", len(results), len(batch))
		}
		for n, err := range results {
			if want := wants[n]; !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("record %d: got %v, want %v", n, err, want)
			}
		}
		wantConflict(t, results[2], board.Conflict{
			Kind: board.ErrDeviceConflict, Device: deviceN(1), Key: keyN(t, 11).Fingerprint(),
			KnownDevice: deviceN(1), KnownKey: keyN(t, 1).Fingerprint(), KnownBy: "widgiot/line3-a",
		})
		wantConflict(t, results[3], board.Conflict{
			Kind: board.ErrKeyConflict, Device: deviceN(12), Key: keyN(t, 2).Fingerprint(),
			KnownDevice: deviceN(2), KnownKey: keyN(t, 2).Fingerprint(), KnownBy: "widgiot/line3-a",
		})
	}
	for _, n := range []int{10, 13} {
		if _, err := r.Lookup(t.Context(), deviceN(n)); err != nil {
			t.Errorf("device %d: %v", n, err)
		}
	}
	for _, n := range []int{12} {
		if _, err := r.Lookup(t.Context(), deviceN(n)); !errors.Is(err, board.ErrNotEnrolled) {
			t.Errorf("device %d: got %v, want ErrNotEnrolled", n, err)
		}
	}
	// Put right, all of them go the same way again.
	broken["state"] = "active"
	b.set(t, broken)
	b.remove(t, deviceN(6).String())
	b.setObject(t, objectName(deviceN(5), keyN(t, 5).Fingerprint()), string(keyN(t, 5).PEM()))
	for n, err := range r.PutBatch(t.Context(), batch) {
		if want := wants[n]; want != ErrDamaged && want != ErrUnsigned && !errors.Is(err, want) || (want == ErrDamaged || want == ErrUnsigned) && err != nil {
			t.Errorf("record %d after the repair: got %v", n, err)
		}
	}
	check(t, b)
}

func testBatchDuplicates(t *testing.T, b backend) {
	r := b.open(t, "")
	b.setObject(t, objectName(deviceN(5), keyN(t, 5).Fingerprint()), "no key")
	results := r.PutBatch(t.Context(), []board.Sealed{
		sealed(t, 1, 1),
		sealed(t, 1, 1),
		seal(t, recordOf(t, "line4", 1, 1)),
		sealed(t, 1, 2), // the device again
		sealed(t, 2, 1), // the key again
		sealed(t, 2, 2), // neither of the refused ones stands against it
		sealed(t, 5, 5), // it cannot be settled now,
		sealed(t, 6, 5), // so it is not known yet whether this is a conflict
		sealed(t, 6, 6), // nor this
		sealed(t, 3, 3),
	})
	for n, want := range []error{nil, nil, nil, board.ErrDeviceConflict, board.ErrKeyConflict, nil, ErrDamaged, ErrDamaged, ErrDamaged, nil} {
		if !errors.Is(results[n], want) || (results[n] == nil) != (want == nil) {
			t.Errorf("record %d: got %v, want %v", n, results[n], want)
		}
	}
	wantConflict(t, results[3], board.Conflict{
		Kind: board.ErrDeviceConflict, Device: deviceN(1), Key: keyN(t, 2).Fingerprint(),
		KnownDevice: deviceN(1), KnownKey: keyN(t, 1).Fingerprint(), KnownBy: "widgiot/line3-a",
	})
	for n, err := range results[6:9] {
		if isVerdict(err) {
			t.Errorf("record %d: got the verdict %v", 6+n, err)
		}
	}
	if got := len(b.items(t)); got != 6 {
		t.Errorf("%d items and guards, want 6", got)
	}
	check(t, b)
}

// testBatchModel sets batches of few devices and keys against the rule, one
// record after another.
func testBatchModel(t *testing.T, b backend) {
	const boards = 12
	random := rand.New(rand.NewPCG(1, 2))
	r := b.open(t, "")
	keyOf, deviceOf := map[int]int{}, map[int]int{}
	for round := range 8 {
		var batch []board.Sealed
		var wants []error
		for range 1 + random.IntN(20) {
			device, key := random.IntN(boards), random.IntN(boards)
			if random.IntN(2) == 0 {
				key = device
			}
			batch = append(batch, sealed(t, device, key))
			knownKey, haveDevice := keyOf[device]
			_, haveKey := deviceOf[key]
			switch {
			case haveDevice && knownKey != key:
				wants = append(wants, board.ErrDeviceConflict)
			case haveKey && !haveDevice:
				wants = append(wants, board.ErrKeyConflict)
			default:
				wants = append(wants, nil)
				keyOf[device], deviceOf[key] = key, device
			}
		}
		for n, err := range r.PutBatch(t.Context(), batch) {
			if !errors.Is(err, wants[n]) || (err == nil) != (wants[n] == nil) {
				t.Errorf("round %d, record %d: got %v, want %v", round, n, err, wants[n])
			}
		}
	}
	if got := len(b.items(t)); got != 2*len(keyOf) {
		t.Errorf("%d items and guards, want %d", got, 2*len(keyOf))
	}
	check(t, b)
}

// testRaceStations lets two stations deliver at once, one in batches and one
// record by record, boards that the other has too, boards that contradict the
// other's, and boards of their own.
func testRaceStations(t *testing.T, b backend) {
	const boards = 8
	station := func(name string, shift int) (records []board.Sealed) {
		for n := range boards {
			records = append(records,
				seal(t, recordOf(t, name, n, n)),                         // both
				seal(t, recordOf(t, name, 100+n, 100+n+shift)),           // one device, two keys
				seal(t, recordOf(t, name, 200+n+shift, 200+n)),           // one key, two devices
				seal(t, recordOf(t, name, 10000+n+shift, 10000+n+shift))) // its own
		}
		return records
	}
	records := [2][]board.Sealed{station("line3-a", 1000), station("line4", 2000)}
	var results [2][]error
	var group sync.WaitGroup
	for s := range records {
		r := b.open(t, "")
		results[s] = make([]error, len(records[s]))
		group.Go(func() {
			todo := make([]int, len(records[s]))
			for n := range todo {
				todo[n] = n
			}
			for range 100 { // errors that pass are tried again, as the spool does
				var batch []board.Sealed
				for _, n := range todo {
					batch = append(batch, records[s][n])
				}
				var again []int
				for k, err := range put(r, s == 0, batch) {
					results[s][todo[k]] = err
					if err != nil && !isVerdict(err) {
						again = append(again, todo[k])
					}
				}
				todo = again
			}
		})
	}
	group.Wait()
	for n := range records[0] {
		first, second := results[0][n], results[1][n]
		switch n % 4 {
		case 0, 3:
			if first != nil || second != nil {
				t.Errorf("record %d: got %v and %v", n, first, second)
			}
			continue
		}
		winner := oneWins(t, []error{first, second}, map[int]error{1: board.ErrDeviceConflict, 2: board.ErrKeyConflict}[n%4])
		conflict, ok := errors.AsType[*board.Conflict](results[1-winner][n])
		if !ok {
			t.Errorf("record %d: got %v, want a conflict", n, results[1-winner][n])
			continue
		}
		won, lost := records[winner][n].Record(), records[1-winner][n].Record()
		want := board.Conflict{
			Kind: conflict.Kind, Device: lost.Device, Key: lost.Fingerprint(),
			KnownDevice: won.Device, KnownKey: won.Fingerprint(), KnownBy: won.Origin(),
		}
		if *conflict != want {
			t.Errorf("record %d: got %+v, want %+v", n, *conflict, want)
		}
	}
	if got, want := len(b.items(t)), 2*(3*boards+2*boards); got != want {
		t.Errorf("%d items and guards, want %d", got, want)
	}
	check(t, b)
}

func put(r registry, batch bool, records []board.Sealed) (results []error) {
	if batch {
		return r.PutBatch(context.Background(), records)
	}
	for _, s := range records {
		results = append(results, r.Put(context.Background(), s))
	}
	return results
}

// TestBatchFaults fails each kind of remote write of a batch in each way, once,
// without the SDK's retries. What was not enrolled gets an error that passes,
// and the same batch again enrols it; nothing is there twice, or by halves.
func TestBatchFaults(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		n := 0
		for _, call := range []struct {
			name, operation string
			proxy           *proxy
			hits            int // the n-th of these calls
		}{
			{"first object", http.MethodPut, b.s3, 1},
			{"some object", http.MethodPut, b.s3, 3},
			{"first transaction", "TransactWriteItems", b.dynamo, 1},
			{"second transaction", "TransactWriteItems", b.dynamo, 2},
		} {
			for f, name := range map[fate]string{
				notApplied: "not applied", lostAnswer: "answer lost", cutAnswer: "answer cut", emptyAnswer: "broken answer",
				serverFault: "500", serverLies: "500 after the write", throttled: "throttled", contested: "conflict",
			} {
				t.Run(call.name+"/"+name, func(t *testing.T) {
					var batch []board.Sealed
					r := once(b.open(t, "").(*AWS))
					r.group = 4
					for range r.group + 3 {
						n++
						batch = append(batch, sealed(t, n, n))
					}
					hits := 0
					call.proxy.decide(func(request *http.Request) fate {
						if operation(request) != call.operation {
							return passed
						}
						if hits++; hits == call.hits {
							return f
						}
						return passed
					})
					results := r.PutBatch(t.Context(), batch)
					call.proxy.decide(nil)
					if hits < call.hits {
						t.Fatal("the call was not made")
					}
					failed := 0
					for k, err := range results {
						if err == nil {
							if _, err := r.Lookup(t.Context(), batch[k].Record().Device); err != nil {
								t.Errorf("record %d is said to be enrolled: %v", k, err)
							}
							continue
						}
						failed++
						if isVerdict(err) || errors.Is(err, ErrDamaged) {
							t.Errorf("record %d: got the verdict %v", k, err)
						}
					}
					want := map[bool]int{true: 1, false: len(batch)}[call.proxy == b.s3 || f == contested] // those that it is about
					switch {
					case call.proxy == b.s3 && f == emptyAnswer:
						want = 0 // the SDK does not read the answer to an object
					case call.proxy == b.dynamo && f.done():
						want = 0 // it is read back
					case call.operation == "TransactWriteItems" && call.hits == 2 && f != contested:
						want = 3 // of the second transaction
					}
					if failed != want && !(call.proxy == b.s3 && f == cutAnswer && failed == 0) {
						t.Errorf("%d of %d records failed, want %d: %v", failed, len(batch), want, errors.Join(results...))
					}
					for k, err := range r.PutBatch(t.Context(), batch) {
						if err != nil {
							t.Errorf("record %d again: %v", k, err)
						}
					}
				})
			}
		}
		if got := len(b.items(t)); got != 2*n {
			t.Errorf("%d items and guards, want %d", got, 2*n)
		}
		check(t, b)
	})
}

// A table whose answers do not say which device they are about, as some
// servers' do not.
func TestBatchWithoutReasons(t *testing.T) {
	onEveryAWS(t, func(t *testing.T, b *awsStore) {
		must(t, b.open(t, "").Put(t.Context(), sealed(t, 3, 3)))
		must(t, b.open(t, "").Put(t.Context(), sealed(t, 90, 90)))
		front := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			kept := &keeper{header: http.Header{}, code: 200}
			b.dynamo.forward.ServeHTTP(kept, r)
			var answer map[string]json.RawMessage
			if kept.code == 400 && json.Unmarshal([]byte(kept.body.String()), &answer) == nil && answer["CancellationReasons"] != nil {
				delete(answer, "CancellationReasons")
				w.WriteHeader(400)
				must(t, json.NewEncoder(w).Encode(answer))
				return
			}
			w.WriteHeader(kept.code)
			_, _ = io.WriteString(w, kept.body.String())
		}))
		c := b.config
		c.DynamoDBEndpoint = front
		a, err := NewAWS(t.Context(), c)
		must(t, err)
		var batch []board.Sealed
		for n := range 20 {
			batch = append(batch, sealed(t, n, n))
		}
		batch[7], batch[12] = sealed(t, 3, 7), sealed(t, 12, 90)
		for n, err := range a.PutBatch(t.Context(), batch) {
			want := map[int]error{7: board.ErrDeviceConflict, 12: board.ErrKeyConflict}[n]
			if !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("record %d: got %v, want %v", n, err, want)
			}
		}
		check(t, b)
	})
}

// keeper keeps an answer.
type keeper struct {
	header http.Header
	code   int
	body   strings.Builder
}

func (k *keeper) Header() http.Header         { return k.header }
func (k *keeper) WriteHeader(code int)        { k.code = code }
func (k *keeper) Write(p []byte) (int, error) { return k.body.Write(p) }

// One record that the table calls invalid does not hold back the others; a
// table that calls all of them so is soon let alone.
func TestBatchInvalid(t *testing.T) {
	setAWSEnv(t)
	for _, test := range []struct {
		name     string
		invalid  string // what a request must hold to be refused
		want     int
		requests int32 // at most
	}{
		{"one", deviceN(11).String(), 1, 20},
		{"all", "device-id", transactionDevices, 12},
	} {
		t.Run(test.name, func(t *testing.T) {
			var requests atomic.Int32
			all := map[string]board.Sealed{}
			dynamo := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				body, _ := io.ReadAll(r.Body)
				if strings.Contains(string(body), test.invalid) {
					w.WriteHeader(400)
					fmt.Fprint(w, `{"__type":"x#ValidationException","message":"what AWS says"}`)
					return
				}
				if operation(r) == "TransactGetItems" {
					fmt.Fprint(w, readBack(t, body, all))
					return
				}
				fmt.Fprint(w, "{}")
			}))
			a := onceAWS(t, dynamo, serve(t, http.HandlerFunc(s3OK)))
			var batch []board.Sealed
			for n := range transactionDevices {
				batch = append(batch, sealed(t, n, n))
				all[deviceN(n).String()] = batch[n]
			}
			failed := 0
			for _, err := range a.PutBatch(t.Context(), batch) {
				if err == nil {
					continue
				}
				if failed++; !strings.Contains(err.Error(), "partition key must be device-id") || isVerdict(err) {
					t.Errorf("got %v", err)
				}
			}
			if made := requests.Load(); failed != test.want || made > test.requests {
				t.Errorf("%d failed after %d requests, want %d after at most %d", failed, made, test.want, test.requests)
			}
		})
	}
}

// readBack answers a TransactGetItems as a table that holds all records does.
func readBack(t *testing.T, request []byte, records map[string]board.Sealed) string {
	var asked struct {
		TransactItems []struct {
			Get struct {
				Key map[string]struct{ S string }
			}
		}
	}
	must(t, json.Unmarshal(request, &asked))
	wire := func(in map[string]types.AttributeValue) map[string]any {
		out := map[string]any{}
		for name, value := range in {
			switch value := value.(type) {
			case *types.AttributeValueMemberS:
				out[name] = map[string]string{"S": value.Value}
			case *types.AttributeValueMemberN:
				out[name] = map[string]string{"N": value.Value}
			}
		}
		return map[string]any{"Item": out}
	}
	var responses []any
	var last board.Sealed
	for n, each := range asked.TransactItems { // the item, then the guard of its key
		if n%2 == 0 {
			last = records[each.Get.Key["device-id"].S]
			responses = append(responses, wire(newItem(last, "", "bucket").dynamo()))
			continue
		}
		responses = append(responses, wire(guardToDynamo(board.KeyBinding{Device: last.Record().Device, Key: last.Record().Fingerprint()})))
	}
	answer, err := json.Marshal(map[string]any{"Responses": responses})
	must(t, err)
	return string(answer)
}

// When AWS is away, a large batch is not one long row of waiting: the rest is
// not tried.
func TestBatchAway(t *testing.T) {
	setAWSEnv(t)
	var batch []board.Sealed
	for n := range 3 * transactionDevices {
		batch = append(batch, sealed(t, n, n))
	}
	ok := serve(t, http.HandlerFunc(s3OK))
	for _, test := range []struct {
		name       string
		s3, dynamo http.HandlerFunc
		want       string
		most       int32
	}{
		{"bucket", func(w http.ResponseWriter, r *http.Request) { awsError(w, r, 403, "AccessDenied", 0, "", "") }, nil, "does not permit this", awayAfter + atOnce},
		{"table", nil, func(w http.ResponseWriter, r *http.Request) {
			awsError(w, r, 0, "", 400, "ResourceNotFoundException", "")
		}, "there is no table", 1},
		{"table closes", nil, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "no answer from AWS", 2},
		{"table throttles one item", nil, func(w http.ResponseWriter, r *http.Request) {
			awsError(w, r, 0, "", 400, "TransactionCanceledException",
				`,"CancellationReasons":[{"Code":"None"},{"Code":"ThrottlingError"}`+strings.Repeat(`,{"Code":"None"}`, 98)+`]`)
		}, "slow down", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var requests atomic.Int32
			count := func(h http.HandlerFunc) string {
				if h == nil {
					return ok
				}
				return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					h(w, r)
				}))
			}
			for n, err := range onceAWS(t, count(test.dynamo), count(test.s3)).PutBatch(t.Context(), batch) {
				if err == nil || isVerdict(err) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("record %d: got %v, want %q", n, err, test.want)
				}
			}
			if made := requests.Load(); made > test.most {
				t.Errorf("%d requests, want at most %d", made, test.most)
			}
		})
	}
}
