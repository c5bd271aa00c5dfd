package pki

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	journalFile = "journal.jsonl"
	maxJournal  = 64 << 20
)

// Entry is a line of the journal: JSON in this order of fields, without white
// space, and LF. Each carries the hash of the line before it, so that a line
// that was changed or taken out is seen.
type Entry struct {
	Seq      uint64    `json:"seq"` // from 1
	Time     time.Time `json:"time"`
	Operator string    `json:"operator"`
	Step     string    `json:"step"`
	// Found says that a run which was cut off had made it; it was checked, not
	// made again.
	Found       bool              `json:"found,omitempty"`
	Key         string            `json:"key,omitempty"` // public, base64 of the SPKI
	Files       []File            `json:"files,omitempty"`
	Certificate *Certificate      `json:"certificate,omitempty"`
	CRL         *CRL              `json:"crl,omitempty"`
	Revoked     *Revocation       `json:"revoked,omitempty"`
	AWS         map[string]string `json:"aws,omitempty"` // names that AWS gave
	Previous    string            `json:"previous"`      // SHA-256 of the line before, in hex; of the first, empty
}

// File is a file of the ceremony's folder.
type File struct {
	Name   string `json:"name"` // with slashes
	SHA256 string `json:"sha256"`
}

// Certificate says what an auditor asks of a certificate.
type Certificate struct {
	Subject     string    `json:"subject"` // RFC 2253
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`      // 32 hex digits
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the DER
	Key         string    `json:"key"`         // the algorithm
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	CA          bool      `json:"ca"`
	PathLength  int       `json:"path_length"` // of a CA
}

// CRL is a list of the root or the line.
type CRL struct {
	Number     uint64    `json:"number"`
	ThisUpdate time.Time `json:"this_update"`
	NextUpdate time.Time `json:"next_update"`
	Serials    []string  `json:"serials"` // revoked
}

// Revocation is of the certificate of the line, or of a region's.
type Revocation struct {
	By     string    `json:"by"` // the authority whose CRL it goes to: "root" or "line"
	Of     string    `json:"of"` // the step that made the certificate
	Serial string    `json:"serial"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"` // whole seconds
}

// encode is the line of e.
func (e Entry) encode() ([]byte, error) {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		return nil, fmt.Errorf("writing the journal: %w", err)
	}
	return line.Bytes(), nil
}

// parseEntry reads one line with its LF. What parses encodes to the same bytes.
func parseEntry(line []byte) (Entry, error) {
	var e Entry
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		return Entry{}, fmt.Errorf("it is no entry: %w", err)
	}
	again, err := e.encode()
	if err != nil || !bytes.Equal(again, line) {
		return Entry{}, errors.New("it is not in the one form of an entry")
	}
	return e, nil
}

// parseJournal reads whole lines; torn is how many bytes are after the last.
func parseJournal(text []byte) (entries []Entry, last string, torn int, err error) {
	for len(text) > 0 {
		end := bytes.IndexByte(text, '\n') + 1
		if end == 0 {
			return entries, last, len(text), nil
		}
		e, err := parseEntry(text[:end])
		if err != nil {
			return nil, "", 0, fmt.Errorf("line %d: %w", len(entries)+1, err)
		}
		if e.Seq != uint64(len(entries)+1) || e.Previous != last {
			return nil, "", 0, fmt.Errorf("line %d: %w: it does not follow the line before", len(entries)+1, errConflict)
		}
		entries, last, text = append(entries, e), digest(text[:end]), text[end:]
	}
	return entries, last, 0, nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// ReadJournal reads what was made in a folder. It takes no lock, and leaves out
// a line that was cut off.
func ReadJournal(dir string) ([]Entry, error) {
	f, err := os.Open(filepath.Join(dir, journalFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNoCeremony)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the journal: %w", err)
	}
	defer f.Close()
	entries, _, _, err := readJournal(f)
	return entries, err
}

func readJournal(f *os.File) (entries []Entry, last string, whole int64, err error) {
	text, err := io.ReadAll(io.LimitReader(f, maxJournal+1))
	if err != nil {
		return nil, "", 0, fmt.Errorf("reading the journal: %w", err)
	}
	if len(text) > maxJournal {
		return nil, "", 0, fmt.Errorf("reading the journal: it is larger than %d bytes", maxJournal)
	}
	entries, last, torn, err := parseJournal(text)
	if err != nil {
		return nil, "", 0, fmt.Errorf("reading the journal %s: %w", f.Name(), err)
	}
	return entries, last, int64(len(text) - torn), nil
}

// journal is open to be written, and locked.
type journal struct {
	file    *os.File
	entries []Entry
	last    string
	size    int64
	broken  error // after a failed write nothing more is written: what is on disk is not known
}

func openJournal(dir string) (*journal, error) {
	f, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	j := &journal{file: f}
	if err := j.open(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

func (j *journal) open(dir string) error {
	// The lock is the process's; the kernel frees it whatever becomes of the
	// process.
	if err := syscall.Flock(int(j.file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w (%v)", dir, errBusy, err)
	}
	var err error
	if j.entries, j.last, j.size, err = readJournal(j.file); err != nil {
		return err
	}
	if err := errors.Join(j.file.Truncate(j.size), j.file.Sync(), syncDir(dir)); err != nil {
		return fmt.Errorf("opening the journal: %w", err)
	}
	return nil
}

// append numbers and chains an entry; it is durable on return.
func (j *journal) append(e Entry) error {
	if j.broken != nil {
		return fmt.Errorf("writing the journal: %w", j.broken)
	}
	e.Seq, e.Previous = uint64(len(j.entries)+1), j.last
	line, err := e.encode()
	if err != nil {
		return err
	}
	_, err = j.file.WriteAt(line, j.size)
	if err = errors.Join(err, j.file.Sync()); err != nil {
		j.broken = err
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.entries, j.last, j.size = append(j.entries, e), digest(line), j.size+int64(len(line))
	return nil
}

func (j *journal) close() error { return j.file.Close() }

// made is the last entry of a step, or nil.
func (j *journal) made(step string) *Entry { return lastOf(j.entries, step) }

func lastOf(entries []Entry, step string) *Entry {
	for i := len(entries) - 1; i >= 0; i-- {
		if entries[i].Step == step {
			return &entries[i]
		}
	}
	return nil
}
