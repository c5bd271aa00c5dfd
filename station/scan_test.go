package station

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

func TestParseScan(t *testing.T) {
	const id, mac = "4d1f8e27b3c05a9e61f2d47788aabbcc", "08:00:28:5b:55:e0"
	device, address := scan{kind: ScanDevice, label: label{kind: ScanDevice, text: id}}, scan{kind: ScanMAC, label: label{kind: ScanMAC, text: mac}}
	decimal := scan{kind: ScanDevice, label: label{kind: ScanDevice, text: "12345678901234567890123456789012"}}
	pairs := scan{kind: ScanMAC, label: label{kind: ScanMAC, text: "12:34:56:78:90:12"}}
	order := func(name string, planned int) scan { return scan{kind: scanOrder, lot: name, planned: planned} }
	for text, want := range map[string]scan{
		id: device, strings.ToUpper(id): device, " " + id + "\r\n": device,
		"4D1F-8E27-B3C0-5A9E-61F2-D477-88AA-BBCC":         device,
		"4d1f 8e27 b3c0 5a9e 61f2 d477 88aa bbcc":         device,
		"4d:1f:8e:27:b3:c0:5a:9e:61:f2:d4:77:88:aa:bb:cc": device,
		"0800285b55e0": address, "08:00:28:5B:55:E0": address, "08-00-28-5B-55-E0": address, "0800 285B 55E0": address,
		"0800.285b.55e0": address, "4D1F8E27.B3C05A9E.61F2D477.88AABBCC": device, "1234567890123456789012345678901" + "2": decimal,
		// Twelve decimal digits are the number of a work order, unless they
		// stand in pairs.
		"000004711234": order("000004711234", 0), "20261129 0001": order("20261129 0001", 0), "2026-1129-0001": order("2026-1129-0001", 0),
		"12:34:56:78:90:12": pairs, "12-34-56-78-90-12": pairs, "12 34 56 78 90 12": pairs,
		"": {kind: scanClear}, " \t\r\n": {kind: scanClear},
		"WO-1": order("WO-1", 0), "WO-1;250": order("WO-1", 250), " WO-1 ; 250 ": order("WO-1", 250), "WO-1;": order("WO-1", 0), "WO-1;0": order("WO-1", 0),
		"000001234567;": order("000001234567", 0), id + ";7": order(id, 7), // a work order that looks like a label
		id[:31] + ";": order(id[:31], 0), "0x" + id + ";": order("0x"+id, 0), "1234567890abcdef;": order("1234567890abcdef", 0),
		"4711": order("4711", 0), "0800285b55e": order("0800285b55e", 0), "4006381333931": order("4006381333931", 0), // an EAN
		"123456789012345678901234567": order("123456789012345678901234567", 0), "1234567890abcde": order("1234567890abcde", 0), "ID 4711": order("ID 4711", 0),
		"WO:" + id: order("WO:"+id, 0), "08_00_28_5b_55_e0": order("08_00_28_5b_55_e0", 0),
		"Auftrag Ä 12": order("Auftrag Ä 12", 0), "工单7;10000000": order("工单7", 10_000_000), "- : -": order("- : -", 0),
		strings.Repeat("x", 64): order(strings.Repeat("x", 64), 0),
	} {
		if got, err := parseScan(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v, want %+v", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		strings.Repeat("0", 32):  "not a device id",
		strings.Repeat("F", 32):  "not a device id",
		strings.Repeat("x", 65):  "up to 64 printable",
		strings.Repeat("x", 129): "longer than 128 bytes",
		"\xff":                   "no text",
		";5":                     "without a name", ";": "without a name",
		"WO;x": "no number of boards", "WO;-1": "no number of boards", "WO;1;2": "no number of boards", "WO;10000001": "want 0 to 10000000",
		"WO;99999999999999999999": "no number of boards", "WO\x00": "printable", "WO\n1": "printable", "WO\u202e1": "printable",
	} {
		if got, err := parseScan(text); !errors.Is(err, errScan) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is %+v, %v, want %q", text, got, err, says)
		}
	}
}

// A label that was not read whole, or not as it is printed, begins no lot.
func TestParseScanOfAPart(t *testing.T) {
	const id = "4d1f8e27b3c05a9e61f2d47788aabbcc"
	for text, says := range map[string]string{
		id[:31]: "31 digits", id[:28]: "28 digits", id[:16]: "16 digits", id + "0": "33 digits", id + id[:4]: "36 digits", id + id: "64 digits", id[1:]: "31 digits",
		strings.ToUpper(id[:31]): "31 digits", "4d1f-8e27-b3c0-5a9e-61f2-d477-88aa-bbc": "31 digits", "4d1f8e27 b3c05a9e 61f2d477 88aabb": "30 digits",
		"0x" + id: "32 digits", "0X" + strings.ToUpper(id): "32 digits", "ID:" + id: "32 digits", "id " + id[:30]: "30 digits", "ID: 0x": "",
		"MAC:0800285b55e0": "12 digits", "0x0800285B55E0": "12 digits", "mac=08:00:28:5b:55:e0": "12 digits",
		"1234567890123456789012345678": "28 digits", "123456789012345678901234567890123456": "36 digits",
	} {
		got, err := parseScan(text)
		if says == "" { // nothing of a label is left
			if err != nil || got.kind != scanOrder {
				t.Errorf("%q is %+v, %v", text, got, err)
			}
			continue
		}
		if !errors.Is(err, errPartial) || !errors.Is(err, errScan) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q is %+v, %v, want %q", text, got, err, says)
		}
		if got, err := parseScan(text + ";"); err != nil || got != (scan{kind: scanOrder, lot: text}) {
			t.Errorf("%q with ; is %+v, %v", text, got, err)
		}
	}
}

// What a scan means is one thing, and is the same when it is read again in the
// form in which it is shown.
func FuzzParseScan(f *testing.F) {
	for _, text := range []string{"4d1f8e27b3c05a9e61f2d47788aabbcc", "08-00-28-5B-55-E0", "WO-1;250", "", ";", "\xff", "工单", "000004711234", "12:34:56:78:90:12", "ID:4d1f", "0x4d1f8e27b3c05a9e61f2d47788aabbcc"} {
		f.Add(text)
	}
	canonical := regexp.MustCompile(`^(?:[0-9a-f]{32}|[0-9a-f]{2}(?::[0-9a-f]{2}){5})$`)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseScan(text)
		switch {
		case errors.Is(err, errPartial): // the way out that the page tells of
			name := strings.TrimSpace(text)
			if again, err := parseScan(name + ";"); (Lot{Name: name}).Check() == nil && (err != nil || again != scan{kind: scanOrder, lot: name}) {
				t.Errorf("%q with ; is %+v, %v", text, again, err)
			}
			if got != (scan{}) || !errors.Is(err, errScan) {
				t.Errorf("%+v, %v", got, err)
			}
		case err != nil:
			if got != (scan{}) || !errors.Is(err, errScan) {
				t.Errorf("%+v, %v", got, err)
			}
		case got.kind == ScanDevice || got.kind == ScanMAC:
			if again, err := parseScan(got.label.text); err != nil || again != got || !canonical.MatchString(got.label.text) {
				t.Errorf("%q is %+v; again %+v, %v", text, got, again, err)
			}
		case got.kind == scanOrder:
			if long := regexp.MustCompile(`^(?i)[0-9a-f]{28,36}$`); long.MatchString(strings.TrimSpace(text)) {
				t.Errorf("%q begins the lot %q", text, got.lot)
			}
			if again, err := parseScan(fmt.Sprintf("%s;%d", got.lot, got.planned)); err != nil || again != got || got.lot == "" || got.label != (label{}) {
				t.Errorf("%q is %+v; again %+v, %v", text, got, again, err)
			}
		case got != scan{kind: scanClear} || strings.TrimSpace(text) != "":
			t.Errorf("%q is %+v", text, got)
		}
	})
}

func TestLabelCheck(t *testing.T) {
	device, _ := board.ParseDeviceID("4d1f8e27b3c05a9e61f2d47788aabbcc")
	for _, c := range []struct {
		label, mac, says string
	}{
		{device.String(), "", ""},
		{"4d1f8e27b3c05a9e61f2d47788aabbcd", "", "names the device 4d1f8e27b3c05a9e61f2d47788aabbcd, and the board is 4d1f8e27b3c05a9e61f2d47788aabbcc"},
		{"08:00:28:5b:55:e0", "08:00:28:5b:55:e0", ""},
		{"08:00:28:5b:55:e0", "08-00-28-5B-55-E0", ""},
		{"08:00:28:5b:55:e0", "08:00:28:5b:55:e1", "names the mac 08:00:28:5b:55:e0, and the board is 08:00:28:5b:55:e1"},
		{"08:00:28:5b:55:e0", "", "names the mac 08:00:28:5b:55:e0, and the board said none"},
	} {
		read, err := parseScan(c.label)
		if err != nil {
			t.Fatal(err)
		}
		err = read.label.check(device, map[string]string{"mac": c.mac})
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s for %s: %v, want %q", c.label, c.mac, err, c.says)
		}
	}
}

func scanText(t *testing.T, s *Station, text, slot string) {
	t.Helper()
	if err := s.Scan(text, slot); err != nil {
		t.Fatal(err)
	}
}

// A board passes with its own label, and fails with that of another, whether or
// not a label is asked for; nothing of it is enrolled.
func TestScannedLabel(t *testing.T) {
	mac := fixtures.NewDevice // only to have another id
	for _, needs := range []bool{false, true} {
		bubble(t, fmt.Sprint("needed ", needs), func(t *testing.T) {
			b := newTestStation(t, 2, func(c *Config) { c.Policy.NeedsLabel = needs }).run()
			one, other := newBoard(), newBoard()
			try := func(slot int, put *fixtures.Board, reason Reason) SlotStatus {
				t.Helper()
				defer func() {
					b.cables[slot].unplug()
					b.await(slot, Empty)
				}()
				b.cables[slot].plug(put)
				if reason == "" {
					return b.await(slot, Passed)
				}
				return b.awaitFailed(slot, reason)
			}
			scanText(t, b.Station, strings.ToUpper(other.ID()), "")
			if got := b.Status().Scan; got == nil || *got != (Scanned{other.ID(), ScanDevice, ""}) {
				t.Errorf("the label that waits is %+v", got)
			}
			if slot := try(0, one, ReasonLabelMismatch); slot.Device != one.ID() || slot.Call != CallQuality {
				t.Errorf("the slot shows %+v", slot)
			}
			// Trying the wrong board once more, or elsewhere, does not help,
			// and the next boards have nothing to do with that label.
			if got := b.Status().Scan; got != nil {
				t.Errorf("the label %+v waits for another board", got)
			}
			try(0, one, ReasonLabelMismatch)
			try(1, one, ReasonLabelMismatch)
			if b.ledger.appends() != 0 || !strings.Contains(b.logged(), "the label names the device "+other.ID()) {
				t.Errorf("asked the journal %d times; the log:\n%s", b.ledger.appends(), b.logged())
			}
			for slot := range 2 {
				next := newBoard()
				next.Device = mac()
				if needs {
					try(slot, next, ReasonLabelMissing)
					scanText(t, b.Station, next.ID(), "")
				}
				try(slot, next, "")
			}
			scanText(t, b.Station, other.ID(), "")
			try(1, other, "")
			// The refused board still is, whatever was scanned for others,
			// until it has its own label.
			try(0, one, ReasonLabelMismatch)
			scanText(t, b.Station, one.ID(), "")
			try(1, one, "")
			if needs {
				try(0, one, ReasonLabelMissing)
			} else {
				try(0, one, "")
			}
			// A MAC address, for a slot; a board in another slot is not meant.
			scanText(t, b.Station, "08:00:28:00:00:01", "B")
			if got := b.Status().Scan; got == nil || *got != (Scanned{"08:00:28:00:00:01", ScanMAC, "B"}) {
				t.Errorf("the label that waits is %+v", got)
			}
			third := newBoard()
			third.Device = mac()
			if needs {
				try(0, third, ReasonLabelMissing)
			} else {
				try(0, third, "")
			}
			try(1, third, ReasonLabelMismatch)
			try(0, third, ReasonLabelMismatch)
			scanText(t, b.Station, third.ID(), "B")
			try(1, third, "")
			// Taken back, and with all labels what they were held against.
			scanText(t, b.Station, other.ID(), "")
			try(0, one, ReasonLabelMismatch)
			scanText(t, b.Station, other.ID(), "A")
			scanText(t, b.Station, "", "A")
			scanText(t, b.Station, other.ID(), "")
			scanText(t, b.Station, "", "")
			if got := b.Status().Scan; got != nil {
				t.Errorf("the label %+v was taken back", got)
			}
			if needs {
				try(0, one, ReasonLabelMissing)
			} else {
				try(0, one, "")
			}
			kept := b.transcripts()
			if got := kept[0].Header["given"]; got != "label "+other.ID() {
				t.Errorf("a transcript of a mismatch is given %q", got)
			}
		})
	}
}

// A board that may be tried again keeps its label, and what is decided uses it
// up.
func TestLabelAfterAFailure(t *testing.T) {
	for _, reason := range Reasons() {
		t.Run(string(reason), func(t *testing.T) {
			b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
			scanText(t, b.Station, deviceOne.String()[:31]+"1", "")
			b.apply(0, event{kind: boardFound}, nil)
			if b.label(0) == nil || b.Status().Scan == nil {
				t.Fatal("the board was found and has no label")
			}
			b.apply(0, event{kind: boardFailed, reason: reason}, nil)
			again := map[Reason]bool{
				ReasonUnplugged: true, ReasonNeedsReset: true, ReasonTimeout: true, ReasonGarbled: true, ReasonNoDialect: true, ReasonWrongSpeed: true,
				ReasonLotUnreadable: true, ReasonDiskFull: true, ReasonDiskError: true,
			}[reason]
			if waits := b.Status().Scan != nil; waits != again || b.label(0) != nil {
				t.Errorf("the label waits: %v, want %v", waits, again)
			}
		})
	}
	// One that failed before it was found had a label too.
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	scanText(t, b.Station, deviceOne.String()[:31]+"1", "")
	b.apply(0, event{kind: boardFailed, reason: ReasonPrivateKeyLeak}, nil)
	if got := b.Status().Scan; got != nil {
		t.Errorf("the label %+v of a board that leaks is left over", got)
	}
}

// Whatever is scanned and inserted in whatever order: no board passes against a
// label, every board that its label names passes, and a label goes with the
// board that it let pass or fails, which stays failed. What is expected is
// worked out from the words of the manual, not from the code.
func TestLabelsInAnyOrder(t *testing.T) {
	runs, steps := 40, 60
	if testing.Short() {
		runs = 8
	}
	for run := range runs {
		seed := rand.Uint64()
		bubble(t, fmt.Sprint(run), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			needs := random.IntN(2) == 0
			const slots = 2
			scripts := make([]*script, slots)
			var history []string
			b := newTestStation(t, slots, func(c *Config) {
				c.Policy.NeedsLabel = needs
				for i := range slots {
					scripts[i] = newScript(uart.Report{})
					c.Slots[i].Dialect = scripts[i]
				}
			}).run()
			var boards []uart.Report
			var names []string
			for range 3 {
				made := newBoard()
				report := newReport(made)
				report.Facts["mac"] = "08:00:28:" + made.ID()[:2] + ":" + made.ID()[2:4] + ":" + made.ID()[4:6]
				boards, names = append(boards, report), append(names, made.ID())
			}
			// waiting holds the labels: where each was scanned for (-1:
			// anywhere), which board it names, and whether a board failed with
			// it.
			type waiter struct {
				slot, names int
				failed      bool
			}
			var waiting []waiter
			refused := map[int]bool{} // boards that were not those of their labels
			drop := func(is func(waiter) bool) {
				var rest []waiter
				for _, w := range waiting {
					if !is(w) {
						rest = append(rest, w)
					}
				}
				waiting = rest
			}
			for range steps {
				slot, which := random.IntN(slots), random.IntN(len(boards))
				switch random.IntN(5) {
				case 0: // for any slot
					text := names[which]
					if random.IntN(2) == 0 {
						text = strings.ToUpper(boards[which].Facts["mac"])
					}
					scanText(t, b.Station, text, "")
					drop(func(w waiter) bool { return w.slot < 0 || w.failed })
					waiting = append(waiting, waiter{slot: -1, names: which})
					history = append(history, fmt.Sprint("scan ", which))
				case 1: // for one
					scanText(t, b.Station, names[which], b.slots[slot].Name)
					drop(func(w waiter) bool { return w.slot == slot })
					waiting = append(waiting, waiter{slot: slot, names: which})
					history = append(history, fmt.Sprint("scan ", which, " for ", slot))
				case 2:
					if random.IntN(3) == 0 {
						scanText(t, b.Station, "", "")
						waiting, refused = nil, map[int]bool{}
						history = append(history, "clear")
					} else {
						scanText(t, b.Station, "WO;5", "") // touches no label
					}
				default:
					fails := random.IntN(4) == 0
					scripts[slot].report = boards[which]
					scripts[slot].read = nil
					if fails {
						scripts[slot].read = func() error { return uart.ErrTimeout }
					}
					var label *waiter
					for i, w := range waiting {
						if w.slot == slot || w.slot < 0 && label == nil {
							label = &waiting[i]
						}
					}
					history = append(history, fmt.Sprintf("board %d in %d, times out %v, label %+v", which, slot, fails, label))
					scripts[slot].come <- struct{}{}
					synctest.Wait()
					got := b.Status().Slots[slot]
					want := Reason("")
					switch {
					case fails:
						want = ReasonTimeout
					case label != nil && label.names != which, label == nil && refused[which]:
						want = ReasonLabelMismatch
					case label == nil && needs:
						want = ReasonLabelMissing
					}
					if got.Reason != want || (got.State == Passed) != (want == "") {
						t.Fatalf("slot %d shows %+v, want %q; seed %d, labels needed %v, after\n%s", slot, got, want, seed, needs, strings.Join(history, "\n"))
					}
					switch want {
					case "":
						delete(refused, which)
					case ReasonLabelMismatch:
						refused[which] = true
					}
					switch {
					case label == nil:
					case want == ReasonTimeout:
						label.failed = true
					default:
						used := *label
						drop(func(w waiter) bool { return w == used })
					}
					scripts[slot].gone <- struct{}{}
					synctest.Wait()
				}
				if shown := b.Status().Scan; (shown != nil) != (len(waiting) > 0) {
					t.Fatalf("the page shows the label %+v, waiting are %+v; seed %d, after\n%s", shown, waiting, seed, strings.Join(history, "\n"))
				}
			}
		})
	}
}

// While two boards are read at once each has its own label, and a retry does
// not take the one of the other.
func TestLabelsOfTwoSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty}, slotState{state: Empty, advice: adviceEmpty})
		names := func(i int) string {
			if l := b.label(i); l != nil {
				return l.text[31:]
			}
			return ""
		}
		id := func(n int) string { return fmt.Sprintf("0100000000000000000000000000000%d", n) }
		scanText(t, b.Station, id(1), "")
		b.apply(0, event{kind: boardFound}, nil)
		scanText(t, b.Station, id(2), "")
		b.apply(1, event{kind: boardFound}, nil)
		if names(0) != "1" || names(1) != "2" {
			t.Fatalf("the boards have the labels %q and %q", names(0), names(1))
		}
		// The first stays where it was, as another label waits for any slot by
		// now.
		scanText(t, b.Station, id(3), "")
		b.apply(0, event{kind: boardFailed, reason: ReasonTimeout}, nil)
		b.apply(0, event{kind: boardGone}, nil)
		b.apply(0, event{kind: boardFound}, nil)
		if names(0) != "1" {
			t.Errorf("the retry has the label %q", names(0))
		}
		b.apply(0, event{kind: boardFailed, reason: ReasonTimeout}, nil)
		b.apply(0, event{kind: boardGone}, nil)
		// Scanning again is a new beginning.
		scanText(t, b.Station, id(4), "")
		b.apply(0, event{kind: boardFound}, nil)
		if names(0) != "4" {
			t.Errorf("after another scan the board has the label %q", names(0))
		}
		// A label scanned for a slot while its board fails takes the place of
		// the old one.
		scanText(t, b.Station, id(5), "B")
		b.apply(1, event{kind: boardFailed, reason: ReasonTimeout}, nil)
		b.apply(1, event{kind: boardGone}, nil)
		scanText(t, b.Station, "", "") // and is gone when all are taken back
		b.apply(1, event{kind: boardFound}, nil)
		if names(1) != "" {
			t.Errorf("a label that was taken back is %q", names(1))
		}
	})
}

func TestScanRefusals(t *testing.T) {
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	for _, c := range []struct{ text, slot, says string }{
		{"WO;x", "", "no number of boards"}, {"", "Z", `no slot "Z"`}, {strings.Repeat("0", 32), "A", "not a device id"},
	} {
		if err := b.Scan(c.text, c.slot); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q for %q: %v, want %q", c.text, c.slot, err, c.says)
		}
	}
	if status := b.Status(); status.Scan != nil || status.Lot.Name != "" {
		t.Errorf("what was refused is shown: %+v", status)
	}
	if _, err := New(func() Config {
		c := Config{SKU: "widgiot", Station: "line3-a", Journal: b.ledger, Backlog: b.backlog, Delivery: b.delivery, Slots: b.slots}
		c.Label = "WO-1"
		return c
	}()); err == nil || !strings.Contains(err.Error(), `"WO-1" is no label`) {
		t.Errorf("a label that is none: %v", err)
	}
}

// The log names each scan.
func TestScansAreLogged(t *testing.T) {
	b := shown(t, nil, slotState{state: Empty, advice: adviceEmpty})
	scanText(t, b.Station, "08-00-28-00-00-01", "A")
	scanText(t, b.Station, "WO-1;5", "")
	for _, want := range []string{`"kind":"mac","label":"08:00:28:00:00:01","slot":"A","message":"scanned"`, `"lot":"WO-1","planned":5,"passed":0,"message":"the lot that is made"`} {
		if !strings.Contains(b.logged(), want) {
			t.Errorf("the log lacks %s:\n%s", want, b.logged())
		}
	}
}
