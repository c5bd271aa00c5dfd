package uart

import (
	"bytes"
	"regexp"
	"strings"
)

// leakDetector finds private keys in a stream of bytes. It ignores case, and
// treats any run of blanks, dashes, underscores and line ends as one blank, so
// that it also finds wrapped text and unusual spellings.
type leakDetector struct {
	words  string // the folded end of the stream
	base64 string // the end of the stream without blanks
}

// leakWords is in the PEM header of every private key. leakBase64 matches the
// beginning of a private key in base64, of any curve and size: a reader that is
// connected in the middle of a dump sees no header. Each alternative requires
// bytes that no public structure has in that place: after the length a version,
// then key material or an algorithm identifier. (In a CSR a subject follows
// version 0.)
const leakWords = "PRIVATE KEY"

var leakBase64 = regexp.MustCompile(strings.Join([]string{
	`M[A-H].CAQEE[F-R]`,        // SEC 1: 30 len, 02 01 01, 04 len
	`MI[GH].AgEBB[A-H]`,        // the same, 30 81 len
	`M[A-H].CAQAw.[AQgw]Y`,     // PKCS #8: 30 len, 02 01 00, 30 len, 06 len
	`MI[GH].AgEAM[A-H].G`,      // the same, 30 81 len
	`MI[I-L]..[AQgw]IBADA.Bg`,  // the same, 30 82 len len
	`MI[I-L]..[AQgw]IBAAK[BC]`, // PKCS #1: 30 82 len len, 02 01 00, 02 81 or 82
}, "|"))

// leakTail is the number of characters kept from one call to the next.
const leakTail = 32

// found reports whether a private key begins in b, or began in the bytes of
// earlier calls and continues in b.
func (d *leakDetector) found(b []byte) bool {
	words := []byte(d.words)
	for _, c := range bytes.ToUpper(b) {
		if strings.IndexByte(" -_\t\r\n", c) >= 0 {
			c = ' '
			if len(words) > 0 && words[len(words)-1] == ' ' {
				continue
			}
		}
		words = append(words, c)
	}
	raw := d.base64 + blanks.Replace(string(b))
	d.words = string(words[max(0, len(words)-leakTail):])
	d.base64 = raw[max(0, len(raw)-leakTail):]
	if bytes.Contains(words, []byte(leakWords)) {
		return true
	}
	return leakBase64.MatchString(raw)
}

// blanks removes the blanks that wrapped base64 may have anywhere.
var blanks = strings.NewReplacer(" ", "", "\t", "", "\r", "", "\n", "")
