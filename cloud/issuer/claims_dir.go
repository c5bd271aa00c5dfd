package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"secretfree/station/board"
)

// ClaimsDir keeps claims as files, for one machine, and for several processes on it. <claim-id>.claim is the
// claim, <claim-id>.cert its certificate once it is finished; both are written once and never changed. It is made by
// OpenClaimsDir.
type ClaimsDir struct {
	path string
	// fault, in tests, fails a step of writing a file: before it, or after it.
	fault func(step string) error
}

const (
	claimsMarker    = "claims.json"
	claimsVersion   = 1
	maxClaimFile    = 256 << 10
	abandonedTemp   = time.Hour
	claimTempPrefix = ".new-"
)

type claimsMarkerJSON struct {
	Version int `json:"version"`
}

type claimFile struct {
	Version int `json:"version"`
	storedClaim
}

type certificateFile struct {
	Version     int    `json:"version"`
	ID          string `json:"claim-id"`
	Serial      string `json:"serial"` // of the claim
	Certificate string `json:"certificate"`
	Chain       string `json:"certificate-chain"`
}

// InitClaimsDir makes a folder of claims, durably, or finds that it is one already; one that holds something else is refused. It is not done in passing by OpenClaimsDir:
// the empty mount point of a disk that is not there must not be taken for a store without claims.
func InitClaimsDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the claims folder: %w", err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("making the claims folder: %w", err)
	}
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == claimsMarker }) {
		for _, e := range entries { // an earlier attempt may have broken off
			if !strings.HasPrefix(e.Name(), claimTempPrefix) {
				return fmt.Errorf("making the claims folder: %s holds %q already: choose an empty folder", path, e.Name())
			}
		}
	}
	marker, err := json.Marshal(claimsMarkerJSON{Version: claimsVersion})
	if err != nil {
		return fmt.Errorf("making the claims folder: %w", err)
	}
	d := &ClaimsDir{path: path}
	if err := d.create(claimsMarker, append(marker, '\n')); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the claims folder: %w", err)
	}
	if err := syncDir(filepath.Dir(filepath.Clean(path))); err != nil {
		return fmt.Errorf("making the claims folder: %w", err)
	}
	return d.usable()
}

// OpenClaimsDir opens what InitClaimsDir made.
func OpenClaimsDir(path string) (*ClaimsDir, error) {
	d := &ClaimsDir{path: path}
	if err := d.usable(); err != nil {
		return nil, err
	}
	// What a crash left half-written was never a claim; what is young may be another process at work.
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("opening the claims folder: %w", err)
	}
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), claimTempPrefix) {
			continue
		}
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > abandonedTemp {
			_ = os.Remove(filepath.Join(path, entry.Name()))
		}
	}
	return d, nil
}

func (d *ClaimsDir) usable() error {
	var marker claimsMarkerJSON
	err := d.read(claimsMarker, &marker)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is not a folder of claims: if its disk is missing, mount it; to begin a new one, make it with init", d.path)
	case err != nil:
		return fmt.Errorf("opening the claims folder: %w", err)
	case marker.Version > claimsVersion:
		return fmt.Errorf("%s has version %d: %w", d.path, marker.Version, board.ErrNewer)
	case marker.Version != claimsVersion:
		return fmt.Errorf("%w: %s has version %d", ErrBadClaim, d.path, marker.Version)
	}
	return nil
}

// Claim is that of the interface Claims.
func (d *ClaimsDir) Claim(_ context.Context, proposal Claim) (Issuance, error) {
	if err := d.usable(); err != nil {
		return Issuance{}, err
	}
	data, err := json.Marshal(claimFile{Version: claimsVersion, storedClaim: storeClaim(proposal)})
	if err != nil {
		return Issuance{}, fmt.Errorf("encoding a claim: %w", err)
	}
	id := proposal.ID()
	if err := d.create(id+".claim", append(data, '\n')); err != nil && !errors.Is(err, fs.ErrExist) {
		return Issuance{}, fmt.Errorf("writing a claim: %w", err)
	}
	claim, err := d.claim(id)
	if err != nil {
		return Issuance{}, err
	}
	certificate, err := d.certificate(claim)
	if errors.Is(err, fs.ErrNotExist) {
		return Issuance{Claim: claim}, nil
	}
	if err != nil {
		return Issuance{}, err
	}
	return Issuance{Claim: claim, Certificate: &certificate}, nil
}

// Finish is that of the interface Claims.
func (d *ClaimsDir) Finish(_ context.Context, claim Claim, certificate Certificate) (Certificate, error) {
	id := claim.ID()
	stored, err := d.claim(id)
	if errors.Is(err, fs.ErrNotExist) || err == nil && stored.Serial != claim.Serial {
		return Certificate{}, fmt.Errorf("%w: %s with serial %s", ErrNoClaim, id, claim.Serial)
	}
	if err != nil {
		return Certificate{}, err
	}
	data, err := json.Marshal(certificateFile{
		Version: claimsVersion, ID: id, Serial: claim.Serial.String(),
		Certificate: string(certificate.LeafPEM()), Chain: string(certificate.ChainPEM()),
	})
	if err != nil {
		return Certificate{}, fmt.Errorf("encoding a certificate: %w", err)
	}
	if err := d.create(id+".cert", append(data, '\n')); err != nil && !errors.Is(err, fs.ErrExist) {
		return Certificate{}, fmt.Errorf("writing a certificate: %w", err)
	}
	return d.certificate(claim)
}

func (d *ClaimsDir) claim(id string) (Claim, error) {
	var file claimFile
	if err := d.read(id+".claim", &file); err != nil {
		return Claim{}, err
	}
	if file.Version != claimsVersion {
		return Claim{}, fmt.Errorf("%w: %s has version %d", ErrBadClaim, id, file.Version)
	}
	return loadClaim(id, file.storedClaim)
}

func (d *ClaimsDir) certificate(claim Claim) (Certificate, error) {
	var file certificateFile
	id := claim.ID()
	if err := d.read(id+".cert", &file); err != nil {
		return Certificate{}, err
	}
	if file.Version != claimsVersion || file.ID != id || file.Serial != claim.Serial.String() {
		return Certificate{}, fmt.Errorf("%w: the certificate of %s is that of something else", ErrBadClaim, id)
	}
	return loadCertificate(id, []byte(file.Certificate), []byte(file.Chain))
}

// create writes a file that must not exist (fs.ErrExist), whole or not at all. Either way, a file of that
// name is durable when it returns: whoever was first may not have come as far as syncing the folder.
func (d *ClaimsDir) create(name string, data []byte) (err error) {
	if err := d.step("before " + filepath.Ext(name)); err != nil {
		return err
	}
	temp, err := os.CreateTemp(d.path, claimTempPrefix+"*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(data)
	if err := errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	linked := os.Link(temp.Name(), filepath.Join(d.path, name))
	if linked != nil && !errors.Is(linked, fs.ErrExist) {
		return linked
	}
	if err := syncDir(d.path); err != nil {
		return err
	}
	if err := d.step("after " + filepath.Ext(name)); err != nil {
		return err
	}
	return linked
}

func (d *ClaimsDir) step(name string) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(name)
}

func (d *ClaimsDir) read(name string, v any) error {
	f, err := os.Open(filepath.Join(d.path, name))
	if err != nil {
		return fmt.Errorf("reading claims: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxClaimFile+1))
	if err != nil {
		return fmt.Errorf("reading claims: %w", err)
	}
	if len(data) > maxClaimFile {
		return fmt.Errorf("%w: %s is longer than %d bytes", ErrBadClaim, name, maxClaimFile)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(v); err != nil {
		return fmt.Errorf("%w: %s: %v", ErrBadClaim, name, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return fmt.Errorf("%w: %s: something follows", ErrBadClaim, name)
	}
	return nil
}
