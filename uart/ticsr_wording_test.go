package uart_test

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/fixtures"
	"secretfree/uart"
)

// worded is a change of a board to other words.
func worded(text string) func(*fixtures.Board) {
	return func(b *fixtures.Board) {
		w, err := fixtures.ParseWording([]byte(text))
		if err != nil {
			panic(err)
		}
		b.Wording = &w
	}
}

const (
	csrCapitals = `{"serial": "UNIQUE DEVICE ID = {BYTES}\r\n\r\n", "before": "\r\n", "questions": [
		{"subject": "validity", "ask": "ENTER VALIDITY PERIOD (DAYS):"}, {"subject": "CA", "ask": "IS CERTIFICATE CA? (0-NO/1-YES):"},
		{"subject": "country", "ask": "ENTER SUBJECT COUNTRY (I.E US):"}, {"subject": "organization", "ask": "ENTER SUBJECT ORGANIZATION:"},
		{"subject": "organization unit", "ask": "ENTER SUBJECT ORGANIZATION UNIT:"},
		{"subject": "common name", "ask": "ENTER SUBJECT COMMON NAME:", "shown": "\r\nDEFAULT COMMON NAME: {ID}\r\n"}, {"subject": "email", "ask": "ENTER SUBJECT EMAIL:"}]}`
	csrOpenSSL = `{"banner": "\nprovisioning v3\n", "serial": "[boot] udid: {id}\n", "before": "", "line_end": "\n", "questions": [
		{"subject": "validity", "ask": "How many days shall it be valid? "}, {"subject": "country", "ask": "Country Name (2 letter code) [AU]: "},
		{"subject": "state", "ask": "State or Province Name (full name) [Some-State]: "}, {"subject": "locality", "ask": "Locality Name (eg, city) []: "},
		{"subject": "organization", "ask": "Organization Name (eg, company) [Internet Widgits Pty Ltd]: "},
		{"subject": "organization unit", "ask": "Organizational Unit Name (eg, section) []: "},
		{"subject": "common name", "ask": "Common Name (e.g. server FQDN or YOUR name) []: ", "shown": "{joined}\n"}, {"subject": "email", "ask": "Email Address []: "}]}`
	csrShowsNothing = `{"questions": [{"subject": "validity", "ask": "-Enter validity period (days):"}, {"subject": "organization unit", "ask": "-Enter subject organization unit:"},
		{"subject": "common name", "ask": "-Enter subject common name:"}, {"subject": "email", "ask": "-Enter subject email:"}]}`
	csrFew  = `{"questions": [{"subject": "validity", "ask": "Lifetime:"}, {"subject": "organization unit", "ask": "OU:"}]}`
	csrMore = `{"questions": [{"ask": "Press a key to go on >"}, {"subject": "organization unit", "ask": "Department:"}, {"ask": "Batch number:", "default": "7", "shown": "\r\nBatch 7\r\n"},
		{"subject": "common name", "ask": "CN:", "shown": "\r\nYour board {joined} it is\r\n"}, {"subject": "validity", "ask": "Expires after:"}, {"ask": "Colour?", "default": "blue"}]}`
	csrLineEnds = `{"line_end": "\r\r\n"}`
	csrNoUnit   = `{"questions": [{"subject": "validity", "ask": "-Enter validity period (days):"}, {"subject": "common name", "ask": "-Enter subject common name:"}]}`
	csrSpoken   = `{"abort": "Error [-7] At Line [12] of main\r\n", "questions": [{"subject": "validity", "ask": "Days valid:"}, {"subject": "organization unit", "ask": "Unit:"}]}`
	csrColons   = `{"serial": "Device-ID (hex): {0x}\r\n\r\n"}`
	csrMarkers  = `{"begin": "\n---- BEGIN NEW CERTIFICATE REQUEST ----\n", "end": "\n---- END NEW CERTIFICATE REQUEST ----\n", "first_row": 76, "row": 76, "row_end": " \n"}`
	csrConstant = `{"questions": [{"subject": "validity", "ask": "-Enter validity period (days):"}, {"subject": "organization unit", "ask": "-Enter subject organization unit:"},
		{"subject": "common name", "ask": "-Enter subject common name:", "default": "CC3220", "shown": "\r\n  Default: {default}\r\n"}]}`
	csrOfAnother = `{"questions": [{"subject": "validity", "ask": "Days:"}, {"subject": "organization unit", "ask": "Unit:"},
		{"subject": "common name", "ask": "Common name:", "shown": "\r\nyou are 4d1f000a8e27b3c05a9e61f2d47788ab\r\n"}]}`
	csrDebug = `{"banner": "\r\n\u001b[32m[0000012] I/BOOT: Controller X7 FW 4.12.0 (CC3235SF)\u001b[0m\r\n[0000019] D/NVS: 3 entries\r\n",
		"serial": "[0000044] I/BOOT: Geraete-UDID: {ID}\r\n[0000051] D/HEAP: 20480 frei\r\n\r\n", "before": "\r\n[0000102] D/TASK: tick rssi=-61\r\n", "questions": [
		{"subject": "validity", "ask": "Gueltigkeit in Tagen (validity): "}, {"subject": "CA", "ask": "Ist CA? [0/1]: "}, {"subject": "country", "ask": "Land (Country) [DE]: "},
		{"subject": "organization unit", "ask": "Abteilung (Organizational Unit): "},
		{"subject": "common name", "ask": "Common Name: ", "shown": "\r\n[0000300] I/CSR: Standardname {id} wird benutzt\r\n"}, {"subject": "email", "ask": "E-Mail: "}],
		"begin": "\r\n[0000400] I/CSR: fertig\r\n-----BEGIN CERTIFICATE REQUEST-----\r\n"}`
	csrOtherSDK = `{"banner": "\r\n\n\t=============================================\r\n\t   CSR Generator Demo - SimpleLink CC32xx SDK 7.10.00.13, Ver: 2.0.0\r\n\t=============================================\r\n\t CHIP: 0x31000019\r\n",
		"serial": "Device unique identifier (UUID): {0x}\r\n\r\nCreate a certificate signing request\r\n", "line_end": "\n", "questions": [
		{"subject": "country", "ask": "1) Country code (2 letters) > "}, {"subject": "state", "ask": "2) State > "}, {"subject": "organization", "ask": "3) Organisation > "},
		{"subject": "organization unit", "ask": "4) Organisation unit > "}, {"subject": "common name", "ask": "5) Common name (blank: device id) > ", "shown": "\r\n   -> {joined}\r\n"},
		{"subject": "validity", "ask": "6) Validity, days > "}]}`
	csrGerman = `{"banner": "\r\nboot\r\n", "serial": "Seriennummer: {id}\r\n", "questions": [{"subject": "validity", "ask": "Tage: "}, {"subject": "country", "ask": "Land: "},
		{"subject": "organization", "ask": "Firma: "}, {"subject": "organization unit", "ask": "Abteilung: "}, {"subject": "common name", "ask": "Name: ", "shown": "\r\n{id}\r\n"}, {"subject": "email", "ask": "E-Mail: "}]}`
	csrShellLike = `{"banner": "\n--- widget provisioning shell ---\n", "serial": "hw uid: {id}\n", "line_end": "\n", "questions": [{"subject": "organization unit", "ask": "enter OU\n> "},
		{"subject": "common name", "ask": "enter CN\n> ", "shown": "{id}\n"}, {"subject": "validity", "ask": "enter lifetime in days\n> "}]}`
	csrNoLabel    = `{"banner": "\r\n", "serial": "{ID}\r\n"}`
	csrVagueAlone = `{"banner": "\r\n", "serial": "Chip-ID: {ID}\r\n", "questions": [{"subject": "validity", "ask": "Days:"}, {"subject": "organization unit", "ask": "OU:"}]}`
	csrNWPDead    = "\r\n[ERROR] - FATAL ERROR: Abort NWP event detected: AbortType=1, AbortData=0x5b883\r\n"
)

// A good board passes with the same identity, whatever its words are, and the
// facts say where the serial number was read again.
func TestTICSRWordings(t *testing.T) {
	for name, c := range map[string]struct {
		words    string
		readings string
		second   string
		within   time.Duration
	}{
		"stock": {"{}", "2", "default", time.Second}, "capitals": {csrCapitals, "2", "default", time.Second}, "as openssl asks": {csrOpenSSL, "2", "default", 2 * time.Second},
		"no defaults": {csrShowsNothing, "2", "request", time.Second}, "few questions": {csrFew, "1", "", time.Second}, "more questions": {csrMore, "2", "default", 2 * time.Second},
		"CR CR LF": {csrLineEnds, "2", "default", time.Second}, "LF": {`{"line_end": "\n"}`, "2", "default", time.Second}, "CR": {`{"line_end": "\r"}`, "2", "default", time.Second},
		"serial number with 0x": {csrColons, "2", "default", time.Second}, "markers": {csrMarkers, "2", "default", time.Second}, "constant name": {csrConstant, "1", "", time.Second},
		"debug lines": {csrDebug, "2", "default", time.Second}, "another SDK": {csrOtherSDK, "2", "default", 2 * time.Second},
		"German": {csrGerman, "2", "default", 3 * time.Second}, "words before the prompt": {csrShellLike, "2", "default", 2 * time.Second},
		"no signs":    {`{"questions": [{"subject": "validity", "ask": "Days of validity "}, {"subject": "organization unit", "ask": "Unit ="}]}`, "1", "", 6 * time.Second},
		"whole lines": {`{"questions": [{"subject": "validity", "ask": "Days of validity:\r\n"}, {"subject": "organization unit", "ask": "Unit?\r\n"}]}`, "1", "", 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newCSRBoard()
				b.DefaultName = fixtures.NameJoined
				b.Boot, b.Think, b.Sign = 0, 0, 0
				worded(c.words)(b)
				l := plug(t, b)
				start := time.Now()
				if err := (uart.TICSR{}).Detect(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				report, err := (uart.TICSR{}).Read(t.Context(), l)
				if err != nil {
					text, _ := l.Transcript().Encode()
					t.Fatalf("%v\n%s", err, text)
				}
				if report.Device != b.Device || string(report.SPKI) != string(b.SPKI()) {
					t.Errorf("another identity")
				}
				proven(t, report)
				if took := time.Since(start); took > c.within {
					t.Errorf("it took %v", took)
				}
				if typed := b.Typed(); typed[0] == "" {
					t.Errorf("typed %q", typed)
				}
				if report.Facts["serial-readings"] != c.readings || report.Facts["second-reading"] != c.second {
					t.Errorf("facts %v", report.Facts)
				}
			})
		})
	}
}

// A number that no line names, or in words that may name another number, is no
// serial number by itself, and a reset does not help.
func TestTICSRWithoutSerialNumberFails(t *testing.T) {
	for words, want := range map[string]error{csrNoLabel: uart.ErrFirmware, csrVagueAlone: uart.ErrGarbled} {
		for _, dialect := range []string{"ti-csr", "auto"} {
			synctest.Test(t, func(t *testing.T) {
				b := newCSRBoard()
				worded(words)(b)
				if _, err := read(t, mustDialect(t, dialect), b); !errors.Is(err, want) {
					t.Errorf("%s: %v", dialect, err)
				}
			})
		}
	}
}

// What a board prints when it needs a reset fails at once.
func TestTICSRAbortNeedsReset(t *testing.T) {
	for name, change := range map[string]func(*fixtures.Board){
		"dead at a question": func(b *fixtures.Board) { b.Print = map[string]string{"state": csrNWPDead} },
		"dead at the start":  func(b *fixtures.Board) { b.Quiet, b.Print = true, map[string]string{"validity": csrNWPDead} },
		"dead while signing": func(b *fixtures.Board) { b.Print = map[string]string{"request": csrNWPDead} },
		"other words":        func(b *fixtures.Board) { b.Print = map[string]string{"surname": "\r\nerror -3 at line 88\r\n"} },
		"paste": func(b *fixtures.Board) {
			b.Print = map[string]string{"request": "\r\nPlease paste the certificate here:"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newCSRBoard()
				b.Boot, b.Think, b.Sign = 0, 0, 0
				change(b)
				l := plug(t, b)
				start := time.Now()
				err := (uart.TICSR{}).Detect(t.Context(), l)
				if err == nil {
					_, err = (uart.TICSR{}).Read(t.Context(), l)
				}
				if !errors.Is(err, uart.ErrNeedsReset) && !(errors.Is(err, uart.ErrGarbled) && strings.Contains(err.Error(), "reset the board")) {
					t.Errorf("%v", err)
				}
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// A serial number of another board, in whatever words it is repeated, is no
// reading.
func TestTICSROtherSerialFails(t *testing.T) {
	for _, shown := range []string{"you are {id}", "uuid={joined}", "{ID}", "0x{joined}!", "it is {bytes} then", "default ({0x})", "the name\r\n{id}"} {
		synctest.Test(t, func(t *testing.T) {
			text, err := json.Marshal(shown + "\r\n")
			if err != nil {
				t.Fatal(err)
			}
			words := `{"questions": [{"subject": "validity", "ask": "Days:"}, {"subject": "organization unit", "ask": "Unit:"}, {"subject": "common name", "ask": "Name of board (CN):", "shown": ` + string(text) + `}]}`
			for _, same := range []bool{true, false} {
				b := newCSRBoard()
				b.Boot, b.Think, b.Sign, b.DefaultName = 0, 0, 0, fixtures.NamePadded
				worded(words)(b)
				if !same {
					b.Serials = [][16]byte{b.Device, fixtures.NewDevice()}
				}
				l := plug(t, b)
				if err := (uart.TICSR{}).Detect(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				report, err := (uart.TICSR{}).Read(t.Context(), l)
				if same && (err != nil || report.Facts["second-reading"] != "default") || !same && !errors.Is(err, uart.ErrGarbled) {
					t.Errorf("%q, the same %t: %v, %v", shown, same, err, report.Facts)
				}
			}
		})
	}
}

// The simulated board prints TI's stock words byte for byte, as the recording
// of them has them.
func TestStockWording(t *testing.T) {
	read := func(name string) (said string) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		recorded, err := uart.ParseTranscript(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, chunk := range recorded.Chunks {
			if chunk.Direction == uart.Received {
				said += string(chunk.Bytes)
			}
		}
		return said
	}
	synctest.Test(t, func(t *testing.T) {
		b := newCSRBoard()
		b.Device = [16]byte{0x6e, 0x3e, 0x0a, 0x00, 0x85, 0xf9, 0xad, 0x3a, 0x96, 0x2a, 0x4d, 0x35, 0x65, 0x3d, 0x4b, 0xee}
		l := plug(t, b)
		if err := (uart.TICSR{}).Detect(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if _, err := (uart.TICSR{}).Read(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, chunk := range l.Transcript().Chunks {
			if chunk.Direction == uart.Received {
				got += string(chunk.Bytes)
			}
		}
		want := read(transcripts + "/ti-csr-stock-words.uart")
		got, _, _ = strings.Cut(got, "-----BEGIN")
		want, _, _ = strings.Cut(want, "-----BEGIN")
		g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
		for i := range min(len(g), len(w)) {
			nonce := len(g[i]) == len("-Enter subject organization unit:")+21+2 && strings.HasPrefix(g[i], "-Enter subject organization unit:")
			if g[i] != w[i] && !nonce {
				t.Errorf("line %d: %q, want %q", i, g[i], w[i])
			}
		}
		if len(g) != len(w) {
			t.Errorf("%d lines, want %d", len(g), len(w))
		}
	})
}
