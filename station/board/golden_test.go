package board_test

import (
	"bytes"
	"os"
	"reflect"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"secretfree/station/board"
)

// goldenStation is the public key of the station that sealed the golden
// envelope.
const goldenStation = "widgiot/line3-a+bf121880+Ae90f/+bRybHpOU1BGRBgdSnAO/W8ilEQDj0fhQ/uMWa"

// Version 1 is on disks and in registries: it opens for ever, and is written
// with the same bytes. There is no flag that makes these files anew; another
// form is another version, with files of its own.
func TestGolden(t *testing.T) {
	record, err := os.ReadFile("testdata/record-v1.json")
	must(t, err)
	envelope, err := os.ReadFile("testdata/envelope-v1.json")
	must(t, err)
	station, err := note.NewVerifier(goldenStation)
	must(t, err)

	r, err := board.ParseRecord(record)
	must(t, err)
	sealed, err := board.OpenEnvelope(envelope, station)
	must(t, err)
	if !reflect.DeepEqual(sealed.Record(), r) {
		t.Errorf("the envelope holds %+v, the record is %+v", sealed.Record(), r)
	}
	must(t, r.Proof.Verify(r.Device, r.Key))
	for _, c := range [][2]string{
		{r.Device.String(), "4d1f000ab3c05a9e61f2d47788aabbcc"},
		{r.Fingerprint().String(), "9f4a8dacca77d0d13b1bdd883a8c107160032cf1255b7e2dc82b65faa2c19f28"},
		{sealed.KeyID(), "widgiot/line3-a+bf121880"},
		{r.ReadAt.String(), "2024-02-29 23:59:59.04 +0000 UTC"},
		{r.Facts["remark"], `<"quoted" & \ ~>.`},
	} {
		if c[0] != c[1] {
			t.Errorf("read %s, want %s", c[0], c[1])
		}
	}

	fixed := fixedRecord(t)
	if got := encode(t, fixed); !bytes.Equal(got, record) {
		t.Errorf("today's encoding is\n%s\nand the golden one\n%s", got, record)
	}
	if got := seal(t, fixed, fixedStation(t)).Envelope(); !bytes.Equal(got, envelope) {
		t.Errorf("today's envelope is\n%s\nand the golden one\n%s", got, envelope)
	}
}
