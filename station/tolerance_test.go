package station

import (
	"bytes"
	"flag"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"secretfree/fixtures"
	"secretfree/station/board"
	"secretfree/uart"
)

var (
	toleranceVariants = flag.Uint64("variants", 0, "how many variants of good boards TestTolerance reads; 0 is a few")
	toleranceSeed     = flag.Uint64("toleranceseed", 1, "the seed of TestTolerance")
	toleranceOnly     = flag.Int64("onlyvariant", -1, "the number of the one variant to read and to print")
)

// toleranceKinds are changes of what a good board prints that leave its
// identity alone. The value says that nearly all boards must still pass; of the
// others some break the dialogue.
var toleranceKinds = map[string]bool{
	"none": true, "case": true, "spaces": true, "line ends": true, "words": true,
	"extra lines": false, "order": false, "facts": false, "refusals": false, "several": false,
}

const (
	toleranceFew   = 3000
	toleranceShare = 0.99
)

// TestTolerance: what does not identify a board may be printed in any form. The
// verdict stays PASS with the same identity, or a failure where the change
// breaks the dialogue; another identity never passes. The whole campaign is
//
//	go test ./station -run '^TestTolerance$' -v -timeout 0 -args -variants 1000000
func TestTolerance(t *testing.T) {
	count := *toleranceVariants
	if count == 0 {
		if count = toleranceFew; testing.Short() {
			count /= 10
		}
	}
	var pool map[string][]*recorded
	if !t.Run("boards", func(t *testing.T) {
		pool = recordPool(t, 24, *toleranceSeed)
		recordTranscripts(t, pool)
	}) {
		return
	}
	c := &tolerance{pool: pool, tally: map[[2]string]*tolerated{}}
	if *toleranceOnly >= 0 {
		synctest.Test(t, func(t *testing.T) { c.variant(t, uint64(*toleranceOnly)) })
		return
	}
	var next atomic.Uint64
	t.Run("variants", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for i := next.Add(1) - 1; i < count && c.wrong.Load() < 10; i = next.Add(1) - 1 {
					synctest.Test(t, func(t *testing.T) { c.variant(t, i) })
				}
			})
		}
	})
	t.Logf("seed %d, %d variants, %d wrong identities\n%s", *toleranceSeed, count, c.wrong.Load(), c.table())
	for row, n := range c.tally {
		if n.why != "" {
			t.Logf("%s, %s: -onlyvariant %d fails: %s", row[0], row[1], n.first, n.why)
		}
		if toleranceKinds[row[1]] && float64(n.passed) < toleranceShare*float64(n.all) {
			t.Errorf("%s, %s: %d of %d pass, want %v", row[0], row[1], n.passed, n.all, toleranceShare)
		}
		if n.all > 0 && n.passed == 0 {
			t.Errorf("%s, %s: none of %d pass", row[0], row[1], n.all)
		}
	}
}

type tolerance struct {
	pool  map[string][]*recorded
	wrong atomic.Int64

	mu    sync.Mutex
	tally map[[2]string]*tolerated // by dialect and kind
}

type tolerated struct {
	all, passed int
	first       uint64 // that failed
	why         string
}

func (c *tolerance) table() string {
	kinds := slices.Sorted(maps.Keys(toleranceKinds))
	dialects := slices.Sorted(maps.Keys(c.pool))
	var out strings.Builder
	fmt.Fprintf(&out, "%-12s", "still passes")
	for _, d := range dialects {
		fmt.Fprintf(&out, "%24s", d)
	}
	for _, kind := range kinds {
		fmt.Fprintf(&out, "\n%-12s", kind)
		for _, d := range dialects {
			n := c.tally[[2]string{d, kind}]
			if n == nil {
				n = &tolerated{}
			}
			fmt.Fprintf(&out, "%8d of %6d %5.1f %%", n.passed, n.all, 100*float64(n.passed)/float64(max(1, n.all)))
		}
	}
	return out.String()
}

// variant reads one board whose text is changed.
func (c *tolerance) variant(t *testing.T, i uint64) {
	rng := rand.New(rand.NewPCG(*toleranceSeed, i+1))
	firmware := []string{fixtures.DialectAT, fixtures.DialectCSR, fixtures.DialectReport}[rng.IntN(3)]
	kind := slices.Sorted(maps.Keys(toleranceKinds))[rng.IntN(len(toleranceKinds))]
	good := c.pool[firmware][rng.IntN(len(c.pool[firmware]))]
	changed := newDecorator(rng, kind).board(good)
	dialect, err := uart.DialectByName(firmware)
	if err != nil {
		t.Fatal(err)
	}
	w := &witness{truth: []*recorded{good}}
	if w.scene, err = NewPrecondition(""); err != nil {
		t.Fatal(err)
	}
	p := &player{rng: rng, now: changed, next: changed, spoil: -1, out: make(chan op, 1024)}
	verdict, state, kept := playBoard(t, dialect, p, w)
	faults := w.faults
	if state.state == Passed && (!w.receipt[state.device] || state.device != good.device) {
		faults = append(faults, "PASS without a receipt of this board for "+state.device.String())
	}
	if len(faults) > 0 {
		c.wrong.Add(1)
		t.Errorf("variant %d, %s, %s: %s: %s", i, firmware, kind, verdict, strings.Join(faults, "\n"))
	}
	if *toleranceOnly >= 0 {
		text, err := []byte("no transcript"), error(nil)
		if kept != nil {
			text, err = kept.Encode()
		}
		t.Logf("variant %d, %s, %s: %s, %v, %v\n%s", i, firmware, kind, verdict, state.device, err, text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	row := [2]string{firmware, kind}
	if c.tally[row] == nil {
		c.tally[row] = &tolerated{}
	}
	n := c.tally[row]
	if n.all++; verdict == "PASS" {
		n.passed++
	} else if n.why == "" {
		n.first, n.why = i, verdict
	}
}

// decorator changes what does not identify a board, in one way for all that a
// board prints.
type decorator struct {
	rng      *rand.Rand
	does     map[string]bool
	lineEnd  string
	style    int               // of case
	words    map[string]string // in place of others
	firmware string
	cut      bool // events cut the questions: a piece of a word that counts cannot be told from others
}

func newDecorator(rng *rand.Rand, kind string) *decorator {
	d := &decorator{rng: rng, does: map[string]bool{kind: true}, words: map[string]string{}, style: rng.IntN(4)}
	d.lineEnd = []string{"\r\n", "\n", "\r", "\n\r", "\r\r\n", "\n\r\r", "\r\n\r\n", "\r\n\n"}[rng.IntN(8)]
	if kind == "several" {
		kinds := slices.Sorted(maps.Keys(toleranceKinds))
		for range 2 + rng.IntN(3) {
			d.does[kinds[rng.IntN(len(kinds))]] = true
		}
	}
	return d
}

// board returns a board with the same identity, and other text.
func (d *decorator) board(good *recorded) *recorded {
	r := *good
	d.firmware = good.firmware
	d.cut = slices.ContainsFunc(good.questions, func(q question) bool { return strings.Contains(q.then, " EVENT]") })
	if d.does["line ends"] {
		r.eol = d.lineEnd
	}
	r.start = []byte(d.text(string(good.start), true))
	r.answers = map[string][]byte{}
	for _, command := range slices.Sorted(maps.Keys(good.answers)) {
		r.answers[command] = []byte(d.answer(command, string(good.answers[command]), good))
	}
	r.questions = nil
	for _, q := range good.questions {
		if _, ok := good.answers[q.answer]; ok { // the key of the request
			r.questions = append(r.questions, question{q.answer, d.text(q.then, false)})
			continue
		}
		r.questions = append(r.questions, question{q.answer, d.text(q.then, false)})
	}
	if r.firmware == fixtures.DialectAT {
		r.unknown = []byte(d.text(strings.Replace(string(good.answers["at+test"]), "OK", "ERROR: command not exist,0", 1), false))
	}
	return &r
}

// answer changes the answer to a command.
func (d *decorator) answer(command, text string, good *recorded) string {
	if d.firmware == fixtures.DialectAT && strings.Contains(text, "+") {
		optional := strings.Contains(command, "version") || strings.Contains(command, "mac_addr") || strings.Contains(command, "public_key")
		end := good.eol
		switch {
		case optional && d.does["refusals"] && d.rng.IntN(3) > 0:
			text = "\r" + end + d.refusal() + end
		case optional && d.does["facts"]:
			text = factValue.ReplaceAllStringFunc(text, func(string) string { return ":" + d.fact() })
		case strings.Contains(command, "version") && d.does["order"]:
			text = factValue.ReplaceAllStringFunc(text, func(value string) string {
				fields := strings.Split(value[1:], ",")
				d.rng.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
				return ":" + strings.Join(fields, ",")
			})
		}
	}
	return d.text(text, false)
}

var factValue = regexp.MustCompile(`:[^\r\n]+`)

func (d *decorator) refusal() string {
	texts := []string{"ERROR", "error: no", "Error", "ERR", "FAIL", "unknown command", "+error", "nicht bekannt", "?", "ERROR: process command,-12296", "error -5", "no such option"}
	return texts[d.rng.IntN(len(texts))]
}

func (d *decorator) fact() string {
	texts := []string{
		"0X3100001A, 3.1.0.5, 3.1.0.19, 4.4.1.3, 0x2222", "0x31000019,3.1.0.5,3.1.0.19,4.4.1.3", "1,2,3,4,5,6,7,8,9", "unknown", "08:00:28:5B:55:E0",
		"0800285b55e0", "\xff\xfe\x00", strings.Repeat("x", 300), "-", "1,8,AAAAAAAA", " ",
	}
	return texts[d.rng.IntN(len(texts))]
}

// text changes a text of the board.
func (d *decorator) text(text string, start bool) string {
	var lines, ends []string // each line and the run of ends after it
	for text != "" {
		n := strings.IndexAny(text, "\r\n")
		if n < 0 {
			n = len(text)
		}
		m := n
		for m < len(text) && (text[m] == '\r' || text[m] == '\n') {
			m++
		}
		lines, ends = append(lines, text[:n]), append(ends, text[n:m])
		text = text[m:]
	}
	if start && d.does["order"] && len(lines) > 2 {
		last := len(lines) - 1
		for last > 0 && !strings.HasPrefix(strings.TrimLeft(lines[last], " \t"), "===") { // the lines of the banner
			last--
		}
		if last > 1 {
			d.rng.Shuffle(last, func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
			if lines[0] == "" {
				lines[0] = " "
			}
		}
	}
	var out strings.Builder
	inPEM := false
	for i, line := range lines {
		inPEM = inPEM && !tolerancePEMEnd.MatchString(line)
		if inPEM {
			out.WriteString(line)
		} else {
			out.WriteString(d.line(line))
		}
		if d.does["spaces"] && ends[i] != "" && line != "" && d.rng.IntN(2) == 0 {
			out.WriteString([]string{" ", "\t", "   ", " \t "}[d.rng.IntN(4)])
		}
		inPEM = inPEM || tolerancePEMBegin.MatchString(line)
		end := ends[i]
		if d.does["line ends"] && end != "" {
			end = d.lineEnd
		}
		out.WriteString(end)
		if d.does["extra lines"] && end != "" && !inPEM && d.rng.IntN(4) == 0 {
			out.WriteString(d.extra() + end)
		}
	}
	return out.String()
}

func (d *decorator) extra() string {
	texts := map[string][]string{
		fixtures.DialectAT: {"+eventwlan:connect,x,0xa:0x0:0x1:0x2:0x3:0x4", "[12] wlan: rssi -61", "heap 20480", "I (345) main: tick", "."},
		fixtures.DialectCSR: {"[NETAPP EVENT] IP Acquired: IP=192.0.2.7 , Gateway=192.0.2.1", "[GENERAL EVENT] - ID=[6] Sender=[1]", "heap 20480",
			"I (345) main: tick", "."},
		fixtures.DialectReport: {"[123] wlan: secretfree 1 is no answer", "heap 20480", "I (345) main: tick", "> ", "."},
	}[d.firmware]
	return texts[d.rng.IntN(len(texts))]
}

var (
	toleranceBlanks = regexp.MustCompile(`\[[A-Z]+ [A-Z]+\]| +`)
	toleranceWord   = regexp.MustCompile(`[A-Za-z]{2,}`)
	// A reply of ti-at, perhaps in a prompt: its name, its numbers, and base64,
	// which is no decoration.
	toleranceReply    = regexp.MustCompile(`(?i)^(.*?)(\+ *[a-z]+)( *: *)(?:([0-9] *, *[0-9]+ *, *)([a-z0-9+/]{40,}=* *)|(.*))$`)
	toleranceSerial   = regexp.MustCompile(`^(Unique device ID)( = )((?:[0-9a-f]{2} ){16})$`)
	toleranceNumber   = regexp.MustCompile(`(?i)(?:(?:0x)?[0-9a-f]{1,2}[ ,:;.-]*){16}`) // a serial number in another form
	toleranceName     = regexp.MustCompile(`^(.*: *)([0-9a-f]{16,32})( *)$`)
	tolerancePEM      = regexp.MustCompile(`^(-+ ?(?:BEGIN|END) )(.*?)( ?-+)$`)
	tolerancePEMBegin = regexp.MustCompile(`^-+ ?BEGIN`)
	tolerancePEMEnd   = regexp.MustCompile(`^-+ ?END`)
	// What the reader knows a question by, the line of the serial number, and
	// an event that cuts either.
	toleranceSubject = regexp.MustCompile(`(?i)^(?:valid.*|expir.*|lifetime|CA|authority|countr.*|states?|provinc.*|localit.*|city|town|location|surname|last|family|organi[sz]ation|org|company|` +
		`unique|device|serial|number|no|nr|id|identifier|udid|uuid|units?|ou|dep.*|division|common.*|cn|.*name|e|e?mail|days?|certificate|file|paste|BEGIN|END|secretfree|ready|OK|get|NETAPP|WLAN|GENERAL|EVENT|ERROR)$`)
)

// line changes one line.
func (d *decorator) line(line string) string {
	if m := toleranceReply.FindStringSubmatch(line); m != nil && d.firmware == fixtures.DialectAT {
		if d.does["spaces"] {
			space := strings.Repeat(" ", d.rng.IntN(3))
			return d.line(m[1]) + m[2] + m[3] + space + strings.ReplaceAll(m[4], ",", ","+space) + m[5] + strings.ReplaceAll(m[6], ",", space+","+space)
		}
		return d.line(m[1]) + d.changeCase(m[2]) + m[3] + m[4] + m[5] + d.changeCase(m[6])
	}
	if strings.HasPrefix(line, "secretfree 1 ") {
		if i := strings.LastIndexByte(line, ' '); len(line)-i == 9 {
			text := d.changeCase(line[:i])
			if d.does["spaces"] {
				text = strings.ReplaceAll(text, " ", strings.Repeat(" ", 1+d.rng.IntN(2)))
			}
			return fmt.Sprintf("%s %08x", text, crc32.ChecksumIEEE([]byte(text)))
		}
	}
	if m := toleranceSerial.FindStringSubmatch(line); m != nil {
		label := m[1]
		if d.does["words"] {
			label = []string{"Unique device ID", "UDID", "unique id", "Unique Device Identifier", "unique chip ID"}[d.rng.IntN(5)]
		}
		return d.changeCase(label) + d.space(m[2]) + d.space(d.changeCase(m[3]))
	}
	if m := tolerancePEM.FindStringSubmatch(line); m != nil {
		label := m[2]
		if d.does["words"] {
			label = []string{"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST", "X509 REQUEST", "PKCS10 REQUEST"}[d.rng.IntN(4)]
		}
		return m[1] + d.changeCase(label) + m[3]
	}
	if m := toleranceName.FindStringSubmatch(line); m != nil && d.firmware == fixtures.DialectCSR {
		return d.line(m[1]) + d.changeCase(m[2]) + d.space(m[3])
	}
	if d.does["words"] && !d.cut && !toleranceNumber.MatchString(line) {
		line = toleranceWord.ReplaceAllStringFunc(line, d.word)
	}
	return d.space(d.changeCase(line))
}

// word replaces a word, the same one each time.
func (d *decorator) word(word string) string {
	if toleranceSubject.MatchString(word) {
		return word
	}
	if d.words[word] == "" {
		d.words[word] = word
		if others := []string{"lorem", "ipsum", "dolor", "amet", "tempus", "velit", "kurz", "bitte", "gerne", "por", "favor", "quelle", "jolie", "nuovo", "prova", "zeile"}; d.rng.IntN(3) > 0 {
			d.words[word] = others[d.rng.IntN(len(others))]
		}
	}
	return d.words[word]
}

func (d *decorator) changeCase(text string) string {
	if !d.does["case"] {
		return text
	}
	switch d.style {
	case 0:
		return strings.ToUpper(text)
	case 1:
		return strings.ToLower(text)
	}
	out := []byte(text)
	for i, c := range out {
		if letter := c | 0x20; letter >= 'a' && letter <= 'z' && (d.style == 2 || d.rng.IntN(2) == 0) {
			out[i] ^= 0x20
		}
	}
	return string(out)
}

// space adds blanks where there are some, and before the line.
func (d *decorator) space(text string) string {
	if !d.does["spaces"] || strings.TrimSpace(text) == "" {
		return text
	}
	text = toleranceBlanks.ReplaceAllStringFunc(text, func(s string) string {
		if strings.Trim(s, " ") != "" { // the beginning of an event
			return s
		}
		return []string{s, s + " ", s + "  ", "\t"}[d.rng.IntN(4)]
	})
	if d.rng.IntN(3) == 0 && !d.cut {
		text = " " + text
	}
	return text
}

// recordTranscripts adds the boards of the good transcripts to a pool: those
// that read as in the transcript when they are asked again.
func recordTranscripts(t *testing.T, pool map[string][]*recorded) {
	paths, err := filepath.Glob("../fixtures/transcripts/*.uart")
	if err != nil {
		t.Fatal(err)
	}
	added := map[string]int{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		transcript, err := uart.ParseTranscript(text)
		if err != nil {
			t.Fatal(err)
		}
		h := transcript.Header
		if h["expect"] != "passed" || h["given"] != "" || pool[h["dialect"]] == nil || h["device"] == "" {
			continue
		}
		if r := learnTranscript(t, transcript); r != nil {
			pool[r.firmware] = append(pool[r.firmware], r)
			added[r.firmware]++
		}
	}
	for firmware := range pool {
		if added[firmware] < 3 {
			t.Errorf("%d boards of %s from transcripts", added[firmware], firmware)
		}
	}
	t.Logf("boards from transcripts: %v", added)
}

func learnTranscript(t *testing.T, transcript *uart.Transcript) *recorded {
	r := &recorded{firmware: transcript.Header["dialect"], answers: map[string][]byte{}, eol: "\r\n"}
	first := slices.IndexFunc(transcript.Chunks, func(c uart.Chunk) bool {
		return c.Direction == uart.Sent && (r.firmware != fixtures.DialectAT || strings.Contains(string(c.Bytes), "at+"))
	})
	asked := &uart.Transcript{}
	for _, c := range transcript.Chunks[:max(0, first)] {
		switch c.Direction {
		case uart.Received:
			r.start = append(r.start, c.Bytes...)
		case uart.Drawn:
			asked.Chunks = append(asked.Chunks, c)
		}
	}
	asked.Chunks = append(asked.Chunks, transcript.Chunks[max(0, first):]...)
	if first < 0 || !slices.ContainsFunc(asked.Chunks, func(c uart.Chunk) bool { return c.Direction == uart.Drawn }) {
		return nil
	}
	r.learn(asked)
	if r.firmware == fixtures.DialectAT {
		r.eol = "\n\r"
		if bytes.Contains(r.answers["at+test"], []byte("\n\r\r")) {
			r.eol = "\n\r\r"
		}
		r.answers[""] = []byte("\r" + r.eol)
	}
	var report uart.Report
	err := error(nil)
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		p := &player{rng: rand.New(rand.NewPCG(1, 1)), now: r, next: r, spoil: -1, out: make(chan op, 1024)}
		var playing sync.WaitGroup
		playing.Go(func() { p.play(theirs) })
		var d uart.Dialect
		if d, err = uart.DialectByName(r.firmware); err != nil {
			return
		}
		l := uart.NewLine(ours, uart.LineOptions{Nonce: p.nonce})
		if err = d.Detect(t.Context(), l); err == nil {
			report, err = d.Read(t.Context(), l)
		}
		ours.Close()
		playing.Wait()
	})
	if err != nil {
		return nil
	}
	r.device = board.DeviceID(report.Device)
	if r.key, err = board.ParseKey(report.SPKI); err != nil || r.device.String() != transcript.Header["device"] {
		return nil
	}
	return r
}
