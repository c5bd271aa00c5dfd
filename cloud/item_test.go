package cloud

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"secretfree/station/board"
)

func TestTable(t *testing.T) {
	if got := Table("widgiot"); got != "widgiot-iot-provisioning-secretfree" {
		t.Errorf("got %s", got)
	}
}

// Both encodings carry all of an item.
func TestItemRoundTrip(t *testing.T) {
	s := sealed(t, 1, 1)
	for _, format := range []PubkeyFormat{PubkeyBase64PEM, PubkeyPEM} {
		want := newItem(s, format, "a-bucket")
		for name, decode := range map[string]func() (*item, error){
			"JSON":     func() (*item, error) { return itemFromJSON(s.Record().Device, want.json()) },
			"DynamoDB": func() (*item, error) { return itemFromDynamo(s.Record().Device, want.dynamo()) },
		} {
			got, err := decode()
			must(t, err)
			if *got != *want {
				t.Errorf("%s: got %+v, want %+v", name, got, want)
			}
		}
	}
}

// An attribute of another type is damage, not an absent attribute.
func TestItemTypes(t *testing.T) {
	s := sealed(t, 1, 1)
	for _, a := range newItem(s, "", "a-bucket").attributes() {
		stored := newItem(s, "", "a-bucket").dynamo()
		stored[a.name] = &types.AttributeValueMemberBOOL{Value: true}
		if _, err := itemFromDynamo(s.Record().Device, stored); err == nil {
			t.Errorf("DynamoDB: %s may be a BOOL", a.name)
		}
		parsed, err := itemFromJSON(s.Record().Device, []byte(`{"`+a.name+`":null}`))
		if err == nil {
			_, err = parsed.enrolment(s.Record().Device)
		}
		if err == nil {
			t.Errorf("JSON: %s may be null", a.name)
		}
	}
	for name, stored := range map[string]map[string]types.AttributeValue{
		"nothing":   {},
		"numbers":   {"device-id": &types.AttributeValueMemberN{Value: "1"}, "device": &types.AttributeValueMemberN{Value: "1"}},
		"other key": guardToDynamo(board.KeyBinding{Device: deviceN(1), Key: keyN(t, 2).Fingerprint()}),
	} {
		if _, err := guardFromDynamo(keyN(t, 1).Fingerprint(), stored); err == nil {
			t.Errorf("a guard of %s was read", name)
		}
	}
}

// What is read as an item encodes and reads back to the same.
func FuzzItem(f *testing.F) {
	for _, name := range []string{"testdata/item-pem.json", "testdata/item-base64-pem.json", "testdata/item-history.json", "testdata/guard-pem.json"} {
		seed, err := os.ReadFile(name)
		must(f, err)
		f.Add(seed)
		f.Add(append(seed, seed...))
	}
	f.Add([]byte(`{"device-id":"d0000000000000000000000000000001","generation":01}`))
	f.Add([]byte(`{"device-id":"\u0064","state":"held","unknown":[1,{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pending, err := parsePending(data)
		if err != nil {
			return
		}
		for _, p := range pending {
			first, err := itemFromJSON(p.Device, p.json)
			must(t, err)
			second, err := itemFromJSON(p.Device, first.json())
			must(t, err)
			if *first != *second {
				t.Fatalf("got %+v, want %+v", second, first)
			}
			if !bytes.Equal(first.json(), second.json()) {
				t.Fatal("two encodings")
			}
			if !p.Device.Valid() || p.Key == (board.Key{}) {
				t.Fatalf("an enrolment without a device or a key: %+v", p)
			}
		}
	})
}

func FuzzGuard(f *testing.F) {
	fingerprint := keyN(f, 1).Fingerprint()
	f.Add(guardToJSON(board.KeyBinding{Device: deviceN(1), Key: fingerprint}))
	f.Add([]byte(`{"device-id":"key:","device":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := guardFromJSON(fingerprint, data)
		if err != nil {
			return
		}
		again, err := guardFromJSON(fingerprint, guardToJSON(*g))
		if err != nil || *again != *g || g.Key != fingerprint || !g.Device.Valid() {
			t.Fatalf("got %+v, %v, want %+v", again, err, g)
		}
	})
}

// What is read as a pubkey is read in both written forms as the same key.
func FuzzPubkey(f *testing.F) {
	text := keyN(f, 1).PEM()
	f.Add(string(text))
	f.Add(base64.StdEncoding.EncodeToString(text))
	f.Add("-----BEGIN PUBLIC KEY-----")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := parsePubkey(s)
		if err != nil {
			return
		}
		for _, form := range []string{string(key.PEM()), base64.StdEncoding.EncodeToString(key.PEM())} {
			if again, err := parsePubkey(form); err != nil || again != key {
				t.Fatalf("%q: got %v", form, err)
			}
		}
	})
}

func TestEnrolmentRefusals(t *testing.T) {
	s := sealed(t, 1, 1)
	if _, err := newItem(s, "", "").enrolment(deviceN(2)); !errors.Is(err, ErrDamaged) {
		t.Errorf("an item of another device: got %v, want ErrDamaged", err)
	}
	// An item that no station wrote may lack attributes, but those that it has
	// are right.
	for _, name := range []string{"key-fingerprint", "station", "enrolled-at", "state", "generation"} {
		i := &item{device: s.Record().Device.String(), pubkey: string(s.Record().Key.PEM())}
		for _, a := range i.attributes() {
			if a.name == name {
				*a.value = "x"
			}
		}
		if _, err := i.enrolment(s.Record().Device); !errors.Is(err, ErrDamaged) {
			t.Errorf("an unsigned item with a bad %s: got %v, want ErrDamaged", name, err)
		}
	}
}
