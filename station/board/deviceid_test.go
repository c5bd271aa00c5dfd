package board_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"secretfree/station/board"
)

func TestDeviceID(t *testing.T) {
	const text = "4d1f000ab3c05a9e61f2d47788aabbcc" // bytes below 0x10 keep their zero
	udid := [16]byte{0x4d, 0x1f, 0x00, 0x0a, 0xb3, 0xc0, 0x5a, 0x9e, 0x61, 0xf2, 0xd4, 0x77, 0x88, 0xaa, 0xbb, 0xcc}
	id, err := board.NewDeviceID(udid)
	must(t, err)
	if !id.Valid() || id.String() != text {
		t.Errorf("%v is %s", udid, id)
	}
	if parsed, err := board.ParseDeviceID(text); err != nil || parsed != id {
		t.Errorf("parsed %s, %v", parsed, err)
	}
	encoded, err := json.Marshal(map[board.DeviceID]board.DeviceID{id: id})
	must(t, err)
	if want := `{"` + text + `":"` + text + `"}`; string(encoded) != want {
		t.Errorf("encoded %s, want %s", encoded, want)
	}
	var decoded map[board.DeviceID]board.DeviceID
	must(t, json.Unmarshal(encoded, &decoded))
	if decoded[id] != id {
		t.Errorf("decoded %v", decoded)
	}
	for _, edge := range []string{strings.Repeat("0", 31) + "1", strings.Repeat("f", 31) + "e", strings.Repeat("1", 32)} {
		if id, err := board.ParseDeviceID(edge); err != nil || id.String() != edge {
			t.Errorf("%s: %v", edge, err)
		}
	}
}

func TestDeviceIDRefusals(t *testing.T) {
	const good = "4d1f000ab3c05a9e61f2d47788aabbcc"
	for name, text := range map[string]string{
		"empty":                "",
		"all 00":               strings.Repeat("0", 32),
		"all FF":               strings.Repeat("f", 32),
		"upper case":           strings.ToUpper(good),
		"one capital":          strings.Replace(good, "d", "D", 1),
		"31 digits":            good[1:],
		"30 digits":            good[2:],
		"34 digits":            good + "00",
		"not padded":           "4d1f0ab3c05a9e61f2d47788aabbcc", // what joining the fields of at+get=iot,udid gives
		"no hex digit":         strings.Replace(good, "a", "g", 1),
		"a space before":       " " + good[1:],
		"a space after":        good + " ",
		"a line end after":     good + "\n",
		"0x before":            "0x" + good[2:],
		"dashes":               "4d1f000a-b3c0-5a9e-61f2-d47788aabbcc",
		"digits of two bytes":  strings.Repeat("é", 16),
		"digits of other maps": strings.Repeat("١", 16),
	} {
		t.Run(name, func(t *testing.T) {
			id, err := board.ParseDeviceID(text)
			if !errors.Is(err, board.ErrDeviceID) || id != (board.DeviceID{}) {
				t.Errorf("got %s, %v, want %v", id, err, board.ErrDeviceID)
			}
			into := parseID(t, good)
			if err := into.UnmarshalText([]byte(text)); !errors.Is(err, board.ErrDeviceID) || into != (board.DeviceID{}) {
				t.Errorf("UnmarshalText: got %s, %v, want %v", into, err, board.ErrDeviceID)
			}
		})
	}
	var ones [16]byte
	for i := range ones {
		ones[i] = 0xff
	}
	for _, udid := range [][16]byte{{}, ones} {
		if id, err := board.NewDeviceID(udid); !errors.Is(err, board.ErrDeviceID) || id != (board.DeviceID{}) {
			t.Errorf("%x: got %s, %v", udid, id, err)
		}
		id := board.DeviceID(udid)
		if text, err := id.MarshalText(); id.Valid() || !errors.Is(err, board.ErrDeviceID) {
			t.Errorf("%x is written as %s, %v", udid, text, err)
		}
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"a", "0", "widgiot", "line3-a", "a-", "7--7", strings.Repeat("a", 63)} {
		if err := board.CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "-a", "A", "widgIot", "a_b", "a.b", "a/b", "a b", " a", "a ", "a\n", "\na", "a\x00", "é", "a+b", strings.Repeat("a", 64),
	} {
		if err := board.CheckName(name); err == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
	if got := board.Origin("widgiot", "line3-a"); got != "widgiot/line3-a" {
		t.Errorf("origin %s", got)
	}
}
