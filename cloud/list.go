package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

// A listing of everything leaves the table to the stations: a page, and a
// pause.
const (
	pageItems = 200
	pagePause = 100 * time.Millisecond

	busyFirst = time.Second // the pause when AWS asks to slow down, doubled each time
	busyMax   = 30 * time.Second
	busyTries = 8 // in a row, about two minutes
)

func parseObjectName(name string) (o board.KeyBinding, err error) {
	device, file, _ := strings.Cut(strings.TrimPrefix(name, "pubkeys/"), "/")
	key, _ := strings.CutSuffix(file, ".pem")
	o.Device, err = board.ParseDeviceID(device)
	if err == nil {
		o.Key, err = board.ParseFingerprint(key)
	}
	if err != nil || name != objectName(o.Device, o.Key) {
		return board.KeyBinding{}, fmt.Errorf("%.200q: %w: it is not the name of a public key: find out who put it there", name, ErrDamaged)
	}
	return o, nil
}

// Enrolments gives the enrolment of every device, as Lookup does, in no order,
// and slowly enough to run beside stations. What is written meanwhile may be
// left out. An error that wraps ErrDamaged is about one device, whose id comes
// with it if it has one; a *Mismatch comes with the enrolment; any other error
// ends the listing. It needs dynamodb:Scan.
func (a *AWS) Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error] {
	return func(yield func(board.Enrolment, error) bool) {
		for id, stored := range a.scan(ctx) {
			e, err := board.Enrolment{}, stored.err
			if err == nil {
				if strings.HasPrefix(id, guardPrefix) {
					continue
				}
				if e.Device, err = parseItemID(id); err == nil {
					var i *item
					if i, err = itemFromDynamo(e.Device, stored.item); err == nil {
						if e, err = i.enrolment(e.Device); err == nil {
							err = i.mismatch(e, a.config.Bucket)
						}
					}
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// Guards gives the guard of every key, in the way of Enrolments.
func (a *AWS) Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return func(yield func(board.KeyBinding, error) bool) {
		for id, stored := range a.scan(ctx) {
			g, err := board.KeyBinding{}, stored.err
			if err == nil {
				key, isGuard := strings.CutPrefix(id, guardPrefix)
				if !isGuard {
					continue
				}
				if g.Key, err = parseGuardID(key); err == nil {
					var known *board.KeyBinding
					if known, err = guardFromDynamo(g.Key, stored.item); err == nil {
						g = *known
					}
				}
			}
			if !yield(g, err) {
				return
			}
		}
	}
}

// Objects gives the name of every stored public key, in order. An error that
// wraps ErrDamaged is about one name; any other ends the listing. It needs
// s3:ListBucket.
func (a *AWS) Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return func(yield func(board.KeyBinding, error) bool) {
		for name, err := range a.names(ctx, "pubkeys/", patiently) {
			var o board.KeyBinding
			if err == nil {
				o, err = parseObjectName(name)
			}
			if !yield(o, err) {
				return
			}
		}
	}
}

func parseItemID(id string) (board.DeviceID, error) {
	device, err := board.ParseDeviceID(id)
	if err != nil {
		return device, fmt.Errorf("item %.80q: %w: it is the item of no device: find out who wrote it", id, ErrDamaged)
	}
	return device, nil
}

func parseGuardID(key string) (board.Fingerprint, error) {
	f, err := board.ParseFingerprint(key)
	if err != nil {
		return f, fmt.Errorf("guard %.80q: %w: it is the guard of no key: find out who wrote it", key, ErrDamaged)
	}
	return f, nil
}

type scannedItem struct {
	item map[string]types.AttributeValue
	err  error // which ends the scan
}

// scan gives all items about devices and keys by their partition key.
func (a *AWS) scan(ctx context.Context) iter.Seq2[string, scannedItem] {
	return func(yield func(string, scannedItem) bool) {
		input := &dynamodb.ScanInput{TableName: aws.String(a.config.Table), ConsistentRead: aws.Bool(true), Limit: aws.Int32(pageItems)}
		for {
			var page *dynamodb.ScanOutput
			err := patiently(ctx, func() (err error) {
				if page, err = a.dynamo.Scan(ctx, input); err != nil {
					return a.fault("listing table "+a.config.Table, err)
				}
				return nil
			})
			if err != nil {
				yield("", scannedItem{err: err})
				return
			}
			for _, stored := range page.Items {
				id, _ := stored["device-id"].(*types.AttributeValueMemberS)
				if id != nil && isRegistration(id.Value) && !yield(id.Value, scannedItem{item: stored}) {
					return
				}
			}
			if input.ExclusiveStartKey = page.LastEvaluatedKey; len(input.ExclusiveStartKey) == 0 {
				return
			}
			if err := pause(ctx, pagePause); err != nil {
				yield("", scannedItem{err: fmt.Errorf("listing table %s: %w", a.config.Table, err)})
				return
			}
		}
	}
}

// patiently calls again while AWS asks to slow down.
func patiently(ctx context.Context, call func() error) error {
	wait := busyFirst
	for try := 1; ; try++ {
		err := call()
		if !isBusy(err) || try == busyTries || pause(ctx, wait) != nil {
			return err
		}
		wait = min(2*wait, busyMax)
	}
}

// isBusy tells that AWS asks to slow down.
func isBusy(err error) bool {
	f, ok := errors.AsType[*fault](err)
	return ok && f.sentence == busySentence
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Enrolments gives the enrolment of every device, as Lookup does, in no order.
// What is written meanwhile may be left out. An error that wraps ErrDamaged is
// about one device, whose id comes with it if it has one; a *Mismatch comes with
// the enrolment; any other error ends the listing.
func (d *Dir) Enrolments(ctx context.Context) iter.Seq2[board.Enrolment, error] {
	return func(yield func(board.Enrolment, error) bool) {
		d.walk(ctx, "items", "the items", func(err error) bool { return yield(board.Enrolment{}, err) }, func(root *os.Root, name string) (bool, error) {
			id, err := parseItemID(withoutJSON(name))
			e := board.Enrolment{Device: id}
			if err == nil {
				var stored *item
				stored, err = readItem(root, itemName(id), id)
				if stored == nil && err == nil {
					return true, nil // deleted meanwhile
				}
				if err == nil {
					if e, err = stored.enrolment(id); err == nil {
						err = stored.mismatch(e, "")
					}
				}
			}
			if _, wrong := errors.AsType[*Mismatch](err); err != nil && !wrong && !errors.Is(err, ErrDamaged) {
				return false, err
			}
			return yield(e, err), nil
		})
	}
}

// Guards gives the guard of every key, in the way of Enrolments.
func (d *Dir) Guards(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return func(yield func(board.KeyBinding, error) bool) {
		d.walk(ctx, "guards", "the guards", func(err error) bool { return yield(board.KeyBinding{}, err) }, func(root *os.Root, name string) (bool, error) {
			key, err := parseGuardID(withoutJSON(name))
			g := &board.KeyBinding{Key: key}
			if err == nil {
				var known *board.KeyBinding
				known, err = readGuard(root, key)
				if known == nil && err == nil {
					return true, nil
				}
				if err == nil {
					g = known
				}
			}
			if err != nil && !errors.Is(err, ErrDamaged) {
				return false, err
			}
			return yield(*g, err), nil
		})
	}
}

// Objects gives the name of every stored public key, in no order. An error that
// wraps ErrDamaged is about one name; any other ends the listing.
func (d *Dir) Objects(ctx context.Context) iter.Seq2[board.KeyBinding, error] {
	return func(yield func(board.KeyBinding, error) bool) {
		ending := func(err error) bool { return yield(board.KeyBinding{}, err) }
		d.walk(ctx, "pubkeys", "the public keys", ending, func(root *os.Root, device string) (goOn bool, err error) {
			if info, err := root.Stat("pubkeys/" + device); err != nil || !info.IsDir() {
				_, err := parseObjectName("pubkeys/" + device)
				return yield(board.KeyBinding{}, err), nil
			}
			goOn, err = walkFolder(ctx, root, "pubkeys/"+device, func(name string) (bool, error) {
				o, err := parseObjectName(path.Join("pubkeys", device, name))
				return yield(o, err), nil
			})
			if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
				return true, nil
			}
			return goOn, err
		})
	}
}

// withoutJSON is the id in a file's name; the name itself if it has none.
func withoutJSON(name string) string {
	id, ok := strings.CutSuffix(name, ".json")
	if !ok {
		return "file " + name
	}
	return id
}

// walk calls do for the names in a folder of the registry, until it says to
// stop; end gets an error that ends it.
func (d *Dir) walk(ctx context.Context, folder, what string, end func(error) bool, do func(root *os.Root, name string) (goOn bool, err error)) {
	root, err := d.open()
	if err == nil {
		defer root.Close()
		_, err = walkFolder(ctx, root, folder, func(name string) (bool, error) { return do(root, name) })
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: its folder %s is missing: put it back from a copy", ErrNoRegistry, folder)
	}
	if err != nil {
		end(d.explain("listing "+what, err))
	}
}

// walkFolder reads a folder part by part, however large it is.
func walkFolder(ctx context.Context, root *os.Root, folder string, do func(name string) (goOn bool, err error)) (goOn bool, err error) {
	f, err := root.Open(folder)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for {
		entries, err := f.ReadDir(pageItems)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), newName) {
				continue // on its way
			}
			if goOn, err := do(e.Name()); !goOn || err != nil {
				return false, err
			}
		}
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
	}
}
