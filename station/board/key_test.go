package board_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	mathrand "math/rand/v2"
	"strings"
	"testing"

	"secretfree/station/board"
)

// rsaKey is a public key that nobody has the private one of: what is checked
// here is its form. It is the same for the same arguments, in every process of
// a fuzzer.
func rsaKey(t testing.TB, bits, e int) *rsa.PublicKey {
	t.Helper()
	b := make([]byte, (bits+7)/8)
	_, _ = mathrand.NewChaCha8([32]byte{byte(bits), byte(bits >> 8)}).Read(b)
	n := new(big.Int).SetBytes(b)
	n.Rsh(n, uint(8*len(b)-bits))
	n.SetBit(n, bits-1, 1).SetBit(n, 0, 1)
	return &rsa.PublicKey{N: n, E: e}
}

func marshal(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(public)
	must(t, err)
	return spki
}

func TestKey(t *testing.T) {
	for name, c := range map[string]struct {
		public    crypto.PublicKey
		algorithm board.Algorithm
	}{
		"P-256":                {newDevice(t, elliptic.P256()).Public(), board.P256},
		"P-384":                {newDevice(t, elliptic.P384()).Public(), board.P384},
		"RSA of 2048 bits":     {rsaKey(t, 2048, 65537), board.RSA},
		"RSA of 3072 bits":     {rsaKey(t, 3072, 65537), board.RSA},
		"RSA of 8192 bits":     {rsaKey(t, 8192, 65537), board.RSA},
		"RSA with exponent 3":  {rsaKey(t, 2048, 3), board.RSA},
		"RSA of an odd length": {rsaKey(t, 2049, 65537), board.RSA},
		"RSA, large exponent":  {rsaKey(t, 8192, 1<<31-1), board.RSA},
	} {
		t.Run(name, func(t *testing.T) {
			spki := marshal(t, c.public)
			key, err := board.ParseKey(spki)
			must(t, err)
			if key.Algorithm() != c.algorithm {
				t.Errorf("algorithm %q, want %q", key.Algorithm(), c.algorithm)
			}
			if !bytes.Equal(key.SPKI(), spki) {
				t.Error("SPKI is not what was parsed")
			}
			if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(c.public) {
				t.Errorf("Public is %T, another key", key.Public())
			}
			made, err := board.NewKey(c.public, nil)
			if err != nil || made != key {
				t.Errorf("NewKey of the parsed key differs from ParseKey: %v", err)
			}
			if again, err := board.ParseKeyPEM(key.PEM()); err != nil || again != key {
				t.Errorf("PEM does not lead back: %v\n%s", err, key.PEM())
			}
			sum := sha256.Sum256(spki)
			if key.Fingerprint() != sum || key.Fingerprint().String() != hex.EncodeToString(sum[:]) {
				t.Errorf("fingerprint %s, want %x", key.Fingerprint(), sum)
			}
			key.SPKI()[0] ^= 1
			if !bytes.Equal(key.SPKI(), spki) {
				t.Error("a caller can change a key through SPKI")
			}
		})
	}
	if zero := (board.Key{}); zero.Algorithm() != "" || zero.Public() != nil || len(zero.SPKI()) != 0 {
		t.Errorf("the zero Key is %q, %v", zero.Algorithm(), zero.Public())
	}
}

// der is one element, in the shortest form of its length.
func der(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

// inner takes the element at the start of b apart.
func inner(t testing.TB, b []byte) (content, rest []byte) {
	t.Helper()
	at, n := 2, int(b[1])
	if extra := n - 0x80; extra > 0 {
		n = 0
		for _, c := range b[2 : 2+extra] {
			n = n<<8 | int(c)
		}
		at += extra
	}
	return b[at : at+n], b[at+n:]
}

func TestParseKeyRefusals(t *testing.T) {
	d := fixedDevice(t)
	good := d.spki(t)
	point, err := d.PublicKey.Bytes()
	must(t, err)
	x, y := point[1:33], point[33:]
	offCurve := bytes.Clone(point)
	offCurve[64] ^= 1
	compressed := elliptic.MarshalCompressed(elliptic.P256(), new(big.Int).SetBytes(x), new(big.Int).SetBytes(y))
	infinity := append([]byte{4}, make([]byte, 64)...)
	beyond := append([]byte{4}, bytes.Repeat([]byte{0xff}, 64)...) // coordinates above the prime

	content, _ := inner(t, good)
	algorithm, bitString := content[:21], content[21:]
	oids, _ := inner(t, algorithm)
	keyOID, curveOID := oids[:9], oids[9:]
	spkiOf := func(point []byte) []byte { return der(0x30, algorithm, der(0x03, []byte{0}, point)) }
	if !bytes.Equal(spkiOf(point), good) || !bytes.Equal(der(0x30, der(0x30, keyOID, curveOID), bitString), good) {
		t.Fatal("the key was taken apart wrongly")
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	x25519, err := d.PublicKey.ECDH()
	must(t, err)

	large := rsaKey(t, 2048, 65537)
	rsaGood := marshal(t, large)
	rsaContent, _ := inner(t, rsaGood)
	rsaAlgorithm := rsaContent[:15]
	pkcs1 := x509.MarshalPKCS1PublicKey(large)
	numbers, _ := inner(t, pkcs1)
	rsaOf := func(pkcs1 []byte) []byte { return der(0x30, rsaAlgorithm, der(0x03, []byte{0}, pkcs1)) }
	if !bytes.Equal(rsaOf(pkcs1), rsaGood) {
		t.Fatal("the RSA key was taken apart wrongly")
	}
	oneBitAside := append([]byte{1}, shiftLeft(point)...) // its first byte, 4, has room

	for name, c := range map[string]struct {
		spki []byte
		want string
	}{
		"nothing":                   {nil, ""},
		"not DER":                   {[]byte("-----BEGIN PUBLIC KEY-----"), ""},
		"the point alone":           {point, ""},
		"cut short":                 {good[:len(good)-1], ""},
		"a byte after it":           {append(bytes.Clone(good), 0), "trailing"},
		"too large":                 {append(bytes.Clone(good), make([]byte, 2048)...), "at most 2048"},
		"P-224":                     {marshal(t, newDevice(t, elliptic.P224()).Public()), "P-224, want P-256 or P-384"},
		"P-521":                     {marshal(t, newDevice(t, elliptic.P521()).Public()), "P-521, want P-256 or P-384"},
		"secp256k1":                 {der(0x30, der(0x30, keyOID, unhex(t, "06052b8104000a")), bitString), "curve"},
		"Ed25519":                   {marshal(t, edPublic), "want ECDSA or RSA"},
		"X25519":                    {append(unhex(t, "302a300506032b656e032100"), x25519.Bytes()[1:33]...), "want ECDSA or RSA"},
		"RSA of 1024 bits":          {marshal(t, rsaKey(t, 1024, 65537)), "RSA of 1024 bits"},
		"RSA of 2047 bits":          {marshal(t, rsaKey(t, 2047, 65537)), "RSA of 2047 bits"},
		"RSA of 8193 bits":          {marshal(t, rsaKey(t, 8193, 65537)), "RSA of 8193 bits"},
		"RSA with exponent 1":       {marshal(t, rsaKey(t, 2048, 1)), "exponent 1"},
		"RSA with exponent 2":       {marshal(t, rsaKey(t, 2048, 2)), "exponent 2"},
		"RSA with an even exponent": {marshal(t, rsaKey(t, 2048, 65536)), "exponent 65536"},
		"an unknown algorithm":      {der(0x30, der(0x30, unhex(t, "06032a0304"), curveOID), bitString), "unknown public key algorithm"},
		"a certificate's signature": {der(0x30, der(0x30, unhex(t, "06082a8648ce3d040302")), bitString), ""},

		"off the curve":          {spkiOf(offCurve), ""},
		"a compressed point":     {spkiOf(compressed), ""},
		"a hybrid point":         {spkiOf(append([]byte{6 + y[31]&1}, point[1:]...)), ""},
		"the raw point":          {spkiOf(point[1:]), ""},
		"the point (0, 0)":       {spkiOf(infinity), ""},
		"the point at infinity":  {spkiOf([]byte{0}), ""},
		"no point":               {spkiOf(nil), ""},
		"above the prime":        {spkiOf(beyond), ""},
		"a point of P-384":       {spkiOf(append([]byte{4}, make([]byte, 96)...)), ""},
		"a byte after the point": {spkiOf(append(bytes.Clone(point), 0)), ""},

		// The same keys in another encoding would have another fingerprint.
		"a length in the long form":         {append([]byte{0x30, 0x81}, good[1:]...), ""},
		"a length that is not given":        {append(append([]byte{0x30, 0x80}, content...), 0, 0), ""},
		"something more beside the curve":   {der(0x30, der(0x30, keyOID, curveOID, []byte{5, 0}), bitString), "not the canonical encoding"},
		"something more beside the key":     {der(0x30, algorithm, bitString, []byte{5, 0}), ""},
		"a point that is one bit aside":     {der(0x30, algorithm, der(0x03, oneBitAside)), "not the canonical encoding"},
		"bits set in the unused ones":       {der(0x30, algorithm, der(0x03, append([]byte{1}, point[:64]...), []byte{point[64] | 1})), ""},
		"a bit string in pieces":            {der(0x30, algorithm, der(0x23, der(0x03, []byte{0}, point[:30]), der(0x03, []byte{0}, point[30:]))), ""},
		"the curve in full":                 {der(0x30, der(0x30, keyOID, der(0x30, []byte{2, 1, 1})), bitString), ""},
		"no curve":                          {der(0x30, der(0x30, keyOID), bitString), ""},
		"a PKCS #1 key":                     {pkcs1, ""},
		"RSA without its NULL":              {der(0x30, der(0x30, rsaAlgorithm[2:13]), der(0x03, []byte{0}, pkcs1)), "NULL"},
		"RSA with something after it":       {rsaOf(append(bytes.Clone(pkcs1), 5, 0)), "not the canonical encoding"},
		"RSA with a third number":           {rsaOf(der(0x30, numbers, []byte{2, 1, 1})), "not the canonical encoding"},
		"RSA with a modulus of zero before": {rsaOf(der(0x30, der(0x02, []byte{0, 0}, large.N.Bytes()), []byte{2, 3, 1, 0, 1})), "modulus"},
		"RSA with a modulus below 0":        {rsaOf(der(0x30, der(0x02, large.N.Bytes()), []byte{2, 3, 1, 0, 1})), "modulus"},
		"RSA with an exponent below 0":      {rsaOf(der(0x30, der(0x02, []byte{0}, large.N.Bytes()), []byte{2, 1, 0xff})), "exponent"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := board.ParseKey(c.spki)
			if !errors.Is(err, board.ErrKey) || !strings.Contains(err.Error(), c.want) || key != (board.Key{}) {
				t.Errorf("got %v, want %v with %q", err, board.ErrKey, c.want)
			}
		})
	}
}

// shiftLeft moves b by one bit, so that its last one is free.
func shiftLeft(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for i := range b {
		c := b[i] << 1
		if i+1 < len(b) {
			c |= b[i+1] >> 7
		}
		out = append(out, c)
	}
	return out
}

// What somebody parsed elsewhere is checked all the same.
func TestNewKeyRefusals(t *testing.T) {
	d, other := fixedDevice(t), newDevice(t, elliptic.P256())
	//lint:ignore SA1019 no other way leads to a point that is none
	at := func(x, y *big.Int) *ecdsa.PublicKey { return &ecdsa.PublicKey{Curve: elliptic.P256(), X: x, Y: y} }
	large := rsaKey(t, 2048, 65537)
	for name, c := range map[string]struct {
		public crypto.PublicKey
		spki   []byte
		want   string
	}{
		"nothing":                 {nil, nil, "want ECDSA or RSA"},
		"a private key":           {d.PrivateKey, nil, "want ECDSA or RSA"},
		"a key by value":          {d.PublicKey, nil, "want ECDSA or RSA"},
		"off the curve":           {at(d.X, new(big.Int).Add(d.Y, big.NewInt(1))), nil, ""},
		"the point at infinity":   {at(new(big.Int), new(big.Int)), nil, ""},
		"a coordinate below 0":    {at(new(big.Int).Neg(d.X), d.Y), nil, ""},
		"a coordinate too large":  {at(new(big.Int).Add(d.X, elliptic.P256().Params().P), d.Y), nil, ""},
		"a modulus below 0":       {&rsa.PublicKey{N: new(big.Int).Neg(large.N), E: large.E}, nil, "not a positive number"},
		"an exponent below 0":     {&rsa.PublicKey{N: large.N, E: -65537}, nil, "exponent -65537"},
		"the encoding of another": {d.Public(), other.spki(t), "not the canonical encoding"},
		"an encoding of nothing":  {d.Public(), []byte{}, "not the canonical encoding"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := board.NewKey(c.public, c.spki)
			if !errors.Is(err, board.ErrKey) || !strings.Contains(err.Error(), c.want) || key != (board.Key{}) {
				t.Errorf("got %v, want %v with %q", err, board.ErrKey, c.want)
			}
		})
	}
}

func TestParseKeyPEM(t *testing.T) {
	d := fixedDevice(t)
	good := string(d.key(t).PEM())
	for name, text := range map[string]string{
		"as written":            good,
		"no line end":           strings.TrimSpace(good),
		"white space around":    "\n \t" + good + "\r\n\n",
		"line ends of two":      strings.ReplaceAll(good, "\n", "\r\n"),
		"wrapped at other ends": strings.Replace(good, "MFkw", "MF\nkw", 1),
	} {
		if key, err := board.ParseKeyPEM([]byte(text)); err != nil || key != d.key(t) {
			t.Errorf("%s: %v", name, err)
		}
	}
	inBlock := func(label string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der}))
	}
	unreadable := "-----BEGIN PUBLIC KEY-----\n????\n-----END PUBLIC KEY-----\n"
	for name, c := range map[string]struct{ text, want string }{
		"nothing":                  {"", "PEM"},
		"DER":                      {string(d.spki(t)), "PEM"},
		"another label":            {inBlock("CERTIFICATE", d.spki(t)), "PEM"},
		"a label of SEC 1":         {inBlock("EC PUBLIC KEY", d.spki(t)), "PEM"},
		"a header":                 {strings.Replace(good, "-----\n", "-----\nComment: x\n\n", 1), "PEM"},
		"something before":         {"x\n" + good, "PEM"},
		"something after":          {good + "x\n", "PEM"},
		"two keys":                 {good + good, "PEM"},
		"a block without its end":  {"-----BEGIN PUBLIC KEY-----\nAAAA\n" + good, "PEM"},
		"an unreadable one before": {unreadable + good, "PEM"},
		"an unreadable one":        {unreadable, "PEM"},
		"no end":                   {strings.Replace(good, "-----END", "-----", 1), "PEM"},
		"another end":              {strings.Replace(good, "END PUBLIC", "END SECRET", 1), "PEM"},
		"an empty block":           {inBlock("PUBLIC KEY", nil), ""},
		"no key in it":             {inBlock("PUBLIC KEY", []byte("hello")), ""},
		"a key that is refused":    {inBlock("PUBLIC KEY", marshal(t, rsaKey(t, 1024, 65537))), "1024 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := board.ParseKeyPEM([]byte(c.text))
			if !errors.Is(err, board.ErrKey) || !strings.Contains(err.Error(), c.want) || key != (board.Key{}) {
				t.Errorf("got %v, want %v with %q", err, board.ErrKey, c.want)
			}
		})
	}
}

func TestFingerprint(t *testing.T) {
	want := fixedDevice(t).key(t).Fingerprint()
	text := want.String()
	if got, err := board.ParseFingerprint(text); err != nil || got != want {
		t.Errorf("%s: got %s, %v", text, got, err)
	}
	marshalled, err := want.MarshalText()
	must(t, err)
	var got board.Fingerprint
	if err := got.UnmarshalText(marshalled); err != nil || got != want || string(marshalled) != text {
		t.Errorf("%s: got %s, %v", marshalled, got, err)
	}
	for name, text := range map[string]string{
		"empty": "", "upper case": strings.ToUpper(text), "short": text[1:], "long": text + "0", "a byte short": text[2:],
		"no hex digit": "g" + text[1:], "a space": text[1:] + " ", "a line end": text + "\n", "colons": strings.Repeat("ab:", 21) + "a",
	} {
		if f, err := board.ParseFingerprint(text); err == nil || f != (board.Fingerprint{}) || !strings.Contains(err.Error(), "64 lower-case") {
			t.Errorf("%s: got %s, %v", name, f, err)
		}
		into := want
		if err := into.UnmarshalText([]byte(text)); err == nil || into != (board.Fingerprint{}) {
			t.Errorf("%s: UnmarshalText: got %s, %v", name, into, err)
		}
	}
}
