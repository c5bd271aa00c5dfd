package board_test

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"secretfree/station/board"
)

func TestRecord(t *testing.T) {
	r := fixedRecord(t)
	data := encode(t, r)
	got, err := board.ParseRecord(data)
	must(t, err)
	if !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, want %+v", got, r)
	}
	if r.Origin() != "widgiot/line3-a" || r.Fingerprint() != r.Key.Fingerprint() {
		t.Errorf("origin %s, fingerprint %s", r.Origin(), r.Fingerprint())
	}
	// Without facts and proof: an empty object, and no field.
	r.Facts, r.Proof = nil, nil
	if text := string(encode(t, r)); !strings.HasSuffix(text, `,"generation":1,"facts":{}}`) {
		t.Errorf("without facts and proof it ends in %s", text[len(text)-60:])
	}
}

// The limits themselves are allowed.
func TestRecordLimits(t *testing.T) {
	d := fixedDevice(t)
	facts := map[string]string{strings.Repeat("a", 32): strings.Repeat("~", 256), "0": "", ".": " ", "-": "x"}
	for i := range 28 {
		facts[fmt.Sprintf("fact-%d", i)] = "x"
	}
	var nonces []string
	for i := range 8 {
		nonces = append(nonces, strings.Repeat(fmt.Sprint(i), 12))
	}
	for name, change := range map[string]func(*board.Record){
		"names":          func(r *board.Record) { r.SKU, r.Station = strings.Repeat("s", 63), "0" },
		"the first time": func(r *board.Record) { r.ReadAt = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC) },
		"the last time":  func(r *board.Record) { r.ReadAt = time.Date(9999, 12, 31, 23, 59, 59, 999_000_000, time.UTC) },
		"generation":     func(r *board.Record) { r.Generation = math.MaxInt32 },
		"facts":          func(r *board.Record) { r.Facts = facts },
		"8 nonces":       func(r *board.Record) { r.Proof = d.proof(t, board.SHA256, nonces...) },
		"long nonces": func(r *board.Record) {
			r.Proof = d.proof(t, board.SHA1, strings.Repeat("a", 128), strings.Repeat("b", 128))
		},
		"one nonce, by a request": func(r *board.Record) { r.Proof = d.requestProof(t, r.Device, fixedNonce) },
		"one nonce, by a report":  func(r *board.Record) { r.Proof = d.reportProof(t, r.Device, strings.Repeat("9", 128)) },
		"a long signature":        func(r *board.Record) { r.Proof.Signatures[1] = make([]byte, 1024) },
		"a large key":             func(r *board.Record) { r.Key, _ = board.NewKey(rsaKey(t, 8192, 65537), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			r := fixedRecord(t)
			change(&r)
			got, err := board.ParseRecord(encode(t, r))
			if err != nil || !reflect.DeepEqual(got, r) {
				t.Errorf("got %+v, %v, want %+v", got, err, r)
			}
		})
	}
}

func TestRecordCheck(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	fact := func(name, value string) func(*board.Record) {
		return func(r *board.Record) { r.Facts = map[string]string{name: value} }
	}
	for name, c := range map[string]struct {
		change func(*board.Record)
		want   string
	}{
		"the zero value":         {func(r *board.Record) { *r = board.Record{} }, "not a name"},
		"no SKU":                 {func(r *board.Record) { r.SKU = "" }, `"" is not a name`},
		"a SKU that is no name":  {func(r *board.Record) { r.SKU = "Widgiot" }, `"Widgiot" is not a name`},
		"a SKU of 64":            {func(r *board.Record) { r.SKU = strings.Repeat("a", 64) }, "not a name"},
		"no station":             {func(r *board.Record) { r.Station = "" }, `"" is not a name`},
		"a station with a slash": {func(r *board.Record) { r.Station = "line3/a" }, `"line3/a" is not a name`},
		"no device":              {func(r *board.Record) { r.Device = board.DeviceID{} }, board.ErrDeviceID.Error()},
		"a device of ones":       {func(r *board.Record) { r.Device = board.DeviceID(bytes.Repeat([]byte{0xff}, 16)) }, board.ErrDeviceID.Error()},
		"no key":                 {func(r *board.Record) { r.Key = board.Key{} }, "no key"},
		"no time":                {func(r *board.Record) { r.ReadAt = time.Time{} }, "read_at"},
		"local time":             {func(r *board.Record) { r.ReadAt = r.ReadAt.In(berlin) }, "not in UTC"},
		"another zone of UTC":    {func(r *board.Record) { r.ReadAt = r.ReadAt.In(time.FixedZone("UTC", 0)) }, "not in UTC"},
		"microseconds":           {func(r *board.Record) { r.ReadAt = r.ReadAt.Add(time.Microsecond) }, "whole milliseconds"},
		"before 1970":            {func(r *board.Record) { r.ReadAt = time.Date(1969, 12, 31, 23, 59, 59, 0, time.UTC) }, "read_at"},
		"after 9999":             {func(r *board.Record) { r.ReadAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "read_at"},
		"no generation":          {func(r *board.Record) { r.Generation = 0 }, "generation 0"},
		"a generation below 0":   {func(r *board.Record) { r.Generation = -1 }, "generation -1"},
		"33 facts": {func(r *board.Record) {
			r.Facts = map[string]string{}
			for i := range 33 {
				r.Facts[fmt.Sprint(i)] = ""
			}
		}, "33 facts, want at most 32"},
		"a fact without name":          {fact("", "x"), "too long or has no name"},
		"a fact with a long name":      {fact(strings.Repeat("a", 33), "x"), "too long or has no name"},
		"a fact with a long value":     {fact("a", strings.Repeat("x", 257)), "too long or has no name"},
		"a fact with a capital":        {fact("nwpVersion", "x"), `"nwpVersion" is not of a-z`},
		"a fact with an underscore":    {fact("nwp_version", "x"), `"nwp_version" is not of a-z`},
		"a fact with a space":          {fact("nwp version", "x"), "is not of a-z"},
		"a fact with an accent":        {fact("é", "x"), "is not of a-z"},
		"a value with a line end":      {fact("a", "x\n"), "not printable ASCII"},
		"a value with a control":       {fact("a", "\x7f"), "not printable ASCII"},
		"a value with an accent":       {fact("a", "é"), "not printable ASCII"},
		"a value that is not Unicode":  {fact("a", "\xff"), "not printable ASCII"},
		"a proof that is no proof":     {func(r *board.Record) { r.Proof = &board.Proof{} }, board.ErrProof.Error()},
		"a proof with one nonce twice": {func(r *board.Record) { r.Proof.Nonces[1] = r.Proof.Nonces[0] }, "the same nonce twice"},
	} {
		t.Run(name, func(t *testing.T) {
			r := fixedRecord(t)
			c.change(&r)
			if err := r.Check(); !errors.Is(err, board.ErrRecord) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check: got %v, want %v with %q", err, board.ErrRecord, c.want)
			}
			if data, err := r.Encode(); !errors.Is(err, board.ErrRecord) || data != nil {
				t.Errorf("Encode: got %q, %v", data, err)
			}
			if sealed, err := board.Seal(r, fixedStation(t)); !errors.Is(err, board.ErrRecord) || sealed.Envelope() != nil {
				t.Errorf("Seal: got %q, %v", sealed.Envelope(), err)
			}
		})
	}
}

// fill gives r facts until its encoding is as large as can be.
func fill(t testing.TB, r *board.Record) {
	t.Helper()
	r.Facts = map[string]string{}
	for i := range 32 {
		name := fmt.Sprint(i)
		r.Facts[name] = strings.Repeat(`"`, 256) // takes two bytes each
		if _, err := r.Encode(); err != nil {
			r.Facts[name] = ""
			room := board.MaxRecord - len(encode(t, *r))
			r.Facts[name] = strings.Repeat(`"`, room/2) + strings.Repeat("x", room%2)
			return
		}
	}
	t.Fatal("32 facts do not fill a record")
}

// Each part may be within its limit and the whole too large.
func TestRecordTooLarge(t *testing.T) {
	r := fixedRecord(t)
	fill(t, &r)
	data := encode(t, r)
	if len(data) != board.MaxRecord {
		t.Fatalf("%d bytes, want %d", len(data), board.MaxRecord)
	}
	if got, err := board.ParseRecord(data); err != nil || !maps.Equal(got.Facts, r.Facts) {
		t.Errorf("a record of %d bytes: %v", len(data), err)
	}
	r.Generation = 10
	must(t, r.Check())
	if data, err := r.Encode(); !errors.Is(err, board.ErrRecord) || !strings.Contains(err.Error(), "16385 bytes, at most 16384") || data != nil {
		t.Errorf("one byte more: got %d bytes, %v", len(data), err)
	}
	if _, err := board.ParseRecord(append(data, ' ')); !errors.Is(err, board.ErrRecord) || !strings.Contains(err.Error(), "16385 bytes, at most 16384") {
		t.Errorf("a byte after it: %v", err)
	}
}

// field is one of a JSON object, as it stands in the text.
type field struct{ name, value string }

func fields(t testing.TB, object string) []field {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(object))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	var out []field
	for d.More() {
		name, err := d.Token()
		must(t, err)
		var value json.RawMessage
		must(t, d.Decode(&value))
		out = append(out, field{name.(string), string(value)})
	}
	return out
}

func join(fields []field) string {
	var out []string
	for _, f := range fields {
		out = append(out, `"`+f.name+`":`+f.value)
	}
	return "{" + strings.Join(out, ",") + "}"
}

// Each field must be there, once, in its place, under its name and of its type;
// and so in the proof.
func TestParseRecordFields(t *testing.T) {
	r, d := fixedRecord(t), fixedDevice(t)
	for name, proof := range map[string]*board.Proof{
		"sign-msg": r.Proof, "csr": d.requestProof(t, r.Device, fixedNonce), "report": d.reportProof(t, r.Device, fixedNonce),
	} {
		t.Run(name, func(t *testing.T) {
			r := r
			r.Proof = proof
			spoilFields(t, string(encode(t, r)))
		})
	}
}

func spoilFields(t *testing.T, good string) {
	top := fields(t, good)
	if join(top) != good || len(top) != 10 {
		t.Fatalf("the record was taken apart wrongly: %v", top)
	}
	proof := top[len(top)-1]
	refused := func(name, text string) {
		t.Run(name, func(t *testing.T) {
			if text == good {
				t.Fatal("the case changes nothing")
			}
			r, err := board.ParseRecord([]byte(text))
			if !errors.Is(err, board.ErrRecord) || errors.Is(err, board.ErrNewer) {
				t.Errorf("got %v, want %v\n%s", err, board.ErrRecord, text)
			}
			if !reflect.DeepEqual(r, board.Record{}) {
				t.Errorf("and a record: %+v", r)
			}
		})
	}
	spoil := func(prefix string, in []field, whole func([]field) string) {
		for i, f := range in {
			name := prefix + f.name
			with := func(changed ...field) string {
				return whole(append(append(append([]field{}, in[:i]...), changed...), in[i+1:]...))
			}
			if f.name != "proof" { // which may be absent
				refused(name+" missing", with())
			}
			refused(name+" null", with(field{f.name, "null"}))
			refused(name+" true", with(field{f.name, "true"}))
			refused(name+" a list of lists", with(field{f.name, "[[]]"}))
			refused(name+" an object", with(field{f.name, `{"x":{}}`}))
			refused(name+" empty", with(field{f.name, `""`}))
			refused(name+" in capitals", with(field{strings.ToUpper(f.name), f.value}))
			refused(name+" escaped", with(field{fmt.Sprintf(`\u%04x`, f.name[0]) + f.name[1:], f.value}))
			refused(name+" under another name", with(field{f.name + "s", f.value}))
			refused(name+" twice", with(f, f))
			refused(name+" twice, of which the first is null", with(field{f.name, "null"}, f))
			refused(name+" and something unknown", with(f, field{"comment", `"x"`}))
			refused(name+" with a space before", with(field{f.name, " " + f.value}))
			refused(name+" with a line end after", with(field{f.name, f.value + "\n"}))
			if i > 0 {
				swapped := append([]field{}, in...)
				swapped[i-1], swapped[i] = swapped[i], swapped[i-1]
				refused(name+" before "+prefix+in[i-1].name, whole(swapped))
			}
		}
	}
	spoil("", top, join)
	spoil("proof ", fields(t, proof.value), func(in []field) string {
		return join(append(append([]field{}, top[:len(top)-1]...), field{"proof", join(in)}))
	})
}

func TestParseRecordRefusals(t *testing.T) {
	r := fixedRecord(t)
	good := string(encode(t, r))
	other := newDevice(t, elliptic.P256()).key(t)
	spki := base64.StdEncoding.EncodeToString(r.Key.SPKI())
	nonce := base64.StdEncoding.EncodeToString(r.Proof.Nonces[0])
	p521 := base64.StdEncoding.EncodeToString(newDevice(t, elliptic.P521()).spki(t))
	const encoding = "not in its one encoding"
	for name, c := range map[string]struct{ from, to, want string }{
		"version 0":           {`"version":1`, `"version":0`, "version 0, want 1"},
		"version -1":          {`"version":1`, `"version":-1`, "version -1, want 1"},
		"version 1.0":         {`"version":1`, `"version":1.0`, "version"},
		"version 1e0":         {`"version":1`, `"version":1e0`, "version"},
		"version as text":     {`"version":1`, `"version":"1"`, "version"},
		"a version too large": {`"version":1`, `"version":99999999999999999999`, "version"},

		"an escape without need":     {`"widgiot"`, `"\u0077idgiot"`, encoding},
		"an escape of HTML":          {`<\"quoted\" &`, `\u003c\"quoted\" \u0026`, encoding},
		"a solidus escaped":          {`"key":"`, `"key":"\/`, ""},
		"a SKU that is no name":      {`"widgiot"`, `"Widgiot"`, "not a name"},
		"a station that is no name":  {`"line3-a"`, `"-"`, "not a name"},
		"a device in capitals":       {`"4d1f`, `"4D1F`, board.ErrDeviceID.Error()},
		"a device without padding":   {`"4d1f000a`, `"4d1f0a`, board.ErrDeviceID.Error()},
		"a device of zeros":          {r.Device.String(), strings.Repeat("0", 32), board.ErrDeviceID.Error()},
		"a key of another":           {spki, base64.StdEncoding.EncodeToString(other.SPKI()), encoding},
		"a key that is none":         {spki, "AAAA", board.ErrKey.Error()},
		"a key that is refused":      {spki, p521, "P-521"},
		"a key with a line break":    {spki, spki[:64] + `\n` + spki[64:], encoding},
		"a key without padding":      {spki, strings.TrimRight(spki, "="), ""},
		"a key with a space":         {spki, spki[:64] + " " + spki[64:], "base64"},
		"a key as numbers":           {`"` + spki + `"`, strings.ReplaceAll(fmt.Sprint(r.Key.SPKI()), " ", ","), encoding},
		"the fingerprint of another": {r.Fingerprint().String(), other.Fingerprint().String(), encoding},
		"a fingerprint in capitals":  {r.Fingerprint().String(), strings.ToUpper(r.Fingerprint().String()), "not a fingerprint"},
		"a fingerprint cut":          {r.Fingerprint().String(), r.Fingerprint().String()[2:], "not a fingerprint"},

		"seconds":                 {"59.040Z", "59Z", "read_at"},
		"two digits":              {"59.040Z", "59.04Z", "read_at"},
		"microseconds":            {"59.040Z", "59.040000Z", "read_at"},
		"a comma":                 {"59.040Z", "59,040Z", encoding},
		"a small z":               {"59.040Z", "59.040z", "read_at"},
		"an offset":               {"59.040Z", "59.040+00:00", "read_at"},
		"no zone":                 {"59.040Z", "59.040", "read_at"},
		"a space in it":           {"29T23", "29 23", "read_at"},
		"a leap second":           {"59.040Z", "60.040Z", "read_at"},
		"a day that was not":      {"2024-02-29", "2023-02-29", "read_at"},
		"a year before the epoch": {"2024-02-29", "1968-02-29", "read_at"},
		"a year of five digits":   {"2024-02-29", "12024-02-29", "read_at"},

		"generation 0":           {`"generation":1`, `"generation":0`, "generation 0"},
		"generation -1":          {`"generation":1`, `"generation":-1`, "generation -1"},
		"generation 1.0":         {`"generation":1`, `"generation":1.0`, "generation"},
		"generation 01":          {`"generation":1`, `"generation":01`, ""},
		"facts in another order": {`"chip":"0x31000019","dialect":"ti-at"`, `"dialect":"ti-at","chip":"0x31000019"`, encoding},
		"a fact twice":           {`"dialect":"ti-at"`, `"dialect":"ti-at","dialect":"ti-at"`, encoding},
		"a fact with two values": {`"dialect":"ti-at"`, `"dialect":"ti-csr","dialect":"ti-at"`, encoding},
		"a fact that is null":    {`"ti-at"`, `null`, encoding},
		"a fact that is one":     {`"ti-at"`, `1`, "facts"},
		"a name in capitals":     {`"chip"`, `"Chip"`, "is not of a-z"},
		"a value with an accent": {`"ti-at"`, `"tí-at"`, "not printable ASCII"},
		"half a surrogate pair":  {`"ti-at"`, `"\ud800"`, "not printable ASCII"},
		"not UTF-8":              {`"ti-at"`, "\"\xff\"", "not printable ASCII"},

		"an unknown method":         {`"sign-msg"`, `"say-so"`, `unknown method "say-so"`},
		"an unknown hash":           {`"sha1"`, `"md5"`, `unknown hash "md5"`},
		"a nonce less":              {`"` + nonce + `",`, "", "2 nonces and 3 signatures"},
		"a nonce that is null":      {`"` + nonce + `"`, "null", "a nonce of 0 bytes"},
		"a nonce with a line break": {nonce, nonce[:4] + `\n` + nonce[4:], encoding},
		"a request where none is":   {`]}}`, `],"request":"MAA="}}`, "has no request"},
		"an empty request":          {`]}}`, `],"request":""}}`, "has no request"},
		"a request that is null":    {`]}}`, `],"request":null}}`, encoding},
		"nonces as text":            {`"nonces":[`, `"nonces":"","x":[`, ""},

		"a space before":       {`{"version"`, ` {"version"`, encoding},
		"a space inside":       {`{"version"`, `{ "version"`, encoding},
		"a space after":        {"}}", "}} ", encoding},
		"a line end":           {"}}", "}}\n", encoding},
		"another value":        {"}}", "}}{}", "follows"},
		"something more":       {"}}", "}}x", "follows"},
		"a comma at the end":   {"}}", "},}", ""},
		"a byte order mark":    {`{"version"`, "\ufeff{\"version\"", ""},
		"an object in a list":  {good, "[" + good + "]", ""},
		"an object in quotes":  {good, `"` + strings.ReplaceAll(good, `"`, `\"`) + `"`, ""},
		"nothing":              {good, "", ""},
		"white space":          {good, " \n", ""},
		"null":                 {good, "null", "version 0"},
		"an empty object":      {good, "{}", "version 0"},
		"a list":               {good, "[]", ""},
		"a number":             {good, "1", ""},
		"binary":               {good, "\x00\x01", ""},
		"a deep nest":          {good, strings.Repeat("[", 12000), ""},
		"the version alone":    {good, `{"version":1}`, ""},
		"more than can be":     {good, good + strings.Repeat(" ", board.MaxRecord), "at most 16384"},
		"a proof of its own":   {`"proof":{`, `"proof":null,"proof":{`, encoding},
		"a field in the proof": {`"proof":{`, `"proof":{"by":"x",`, "by"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, c.from, c.to, 1)
			if text == good {
				t.Fatal("the case changes nothing")
			}
			got, err := board.ParseRecord([]byte(text))
			if !errors.Is(err, board.ErrRecord) || errors.Is(err, board.ErrNewer) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, board.ErrRecord, c.want)
			}
			if !reflect.DeepEqual(got, board.Record{}) {
				t.Errorf("and a record: %+v", got)
			}
		})
	}
	for n := range len(good) {
		if _, err := board.ParseRecord([]byte(good[:n])); !errors.Is(err, board.ErrRecord) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// A record of a later version is not called invalid, whatever else is in it:
// nobody may throw it away.
func TestParseRecordNewer(t *testing.T) {
	good := string(encode(t, fixedRecord(t)))
	for name, text := range map[string]string{
		"version 2":           strings.Replace(good, `"version":1`, `"version":2`, 1),
		"with more fields":    strings.Replace(good, `"version":1`, `"version":3,"line":{"name":"x"}`, 1),
		"with other types":    `{"version":2,"sku":["a","b"],"facts":7}`,
		"the version at last": `{"sku":"widgiot","version":2}`,
	} {
		_, err := board.ParseRecord([]byte(text))
		if !errors.Is(err, board.ErrNewer) || errors.Is(err, board.ErrRecord) || !strings.Contains(err.Error(), "version") {
			t.Errorf("%s: got %v, want %v", name, err, board.ErrNewer)
		}
	}
}

// Whatever a clock says, a record can be made of it.
func TestTimestamp(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"2024-02-29T23:59:59.0409Z", "2024-02-29T23:59:59.04Z"}, {"2024-02-29T23:59:59+02:00", "2024-02-29T21:59:59Z"},
		{"1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00Z"}, {"1900-01-01T00:00:00Z", "1970-01-01T00:00:00Z"}, {"0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"},
		{"2150-01-01T00:00:00Z", "2150-01-01T00:00:00Z"}, {"9999-12-31T23:59:59.9999Z", "9999-12-31T23:59:59.999Z"}, {"9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59.999Z"},
	} {
		in, err := time.Parse(time.RFC3339Nano, c.in)
		if err != nil {
			t.Fatal(err)
		}
		r := fixedRecord(t)
		r.ReadAt = board.Timestamp(in)
		if got := r.ReadAt.Format(time.RFC3339Nano); got != c.want {
			t.Errorf("%s is %s, want %s", c.in, got, c.want)
		}
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", c.in, err)
		}
	}
}
