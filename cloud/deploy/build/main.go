// Build makes the package that the functions of the template run:
// issuer-lambda.zip, with the program as bootstrap, the keys of the trusted
// stations and, for a CA whose key is in KMS, its certificates. The same
// sources and files give the same bytes, wherever they lie.
//
//	go run ./cloud/deploy/build -stations DIR [-ca DIR] [-out dist]
//
// It runs in the module's folder or below it, and needs the toolchain that
// go.mod names.
package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"time"
)

const packageName = "issuer-lambda.zip"

func main() {
	out := flag.String("out", "dist", "the folder to write "+packageName+" to")
	stations := flag.String("stations", "", "the folder with a file NAME.pub for each trusted station: its station.pub")
	ca := flag.String("ca", "", "the folder with root.pem, and for a CA whose key is in KMS issuing.pem and chain.pem")
	arch := flag.String("arch", "arm64", "the architecture: arm64, which the template says, or amd64")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *stations, *ca, *arch, program); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, stations, ca, arch, program string) error {
	files := map[string][]byte{}
	keys, err := filepath.Glob(filepath.Join(stations, "*.pub"))
	if err != nil || stations == "" || len(keys) == 0 {
		return errors.Join(errors.New("-stations has to name a folder with a file NAME.pub for each trusted station: an issuer that trusts none refuses everything"), err)
	}
	for _, name := range keys {
		if files["stations/"+filepath.Base(name)], err = os.ReadFile(name); err != nil {
			return err
		}
	}
	if ca != "" { // never its key
		for _, name := range []string{"root.pem", "chain.pem", "issuing.pem"} {
			certificate, err := os.ReadFile(filepath.Join(ca, name))
			if name != "root.pem" && errors.Is(err, fs.ErrNotExist) { // ACM Private CA knows its own chain
				continue
			}
			if err != nil {
				return err
			}
			if bytes.Contains(certificate, []byte("PRIVATE KEY")) {
				return fmt.Errorf("%s holds a private key, which must not leave with a package", filepath.Join(ca, name))
			}
			files["ca/"+name] = certificate
		}
	}
	if files["bootstrap"], err = compile(ctx, arch, program); err != nil {
		return err
	}
	packed, err := pack(files)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	name := filepath.Join(out, packageName)
	if err := os.WriteFile(name, packed, 0o644); err != nil {
		return err
	}
	_, err = fmt.Printf("%x  %s\n", sha256.Sum256(packed), name)
	return err
}

// compile builds the program for Lambda. Nothing of this machine gets into it:
// no path, no version control, no cgo. program is what is packed.
const program = "secretfree/cmd/issuer-lambda"

func compile(ctx context.Context, arch, program string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "issuer-lambda")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "bootstrap")
	c := exec.CommandContext(ctx, "go", "build", "-tags", "lambda.norpc", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", name, program)
	c.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "GOARM64=v8.0", "GOAMD64=v1", "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT=", "GOFIPS140=off")
	if text, err := c.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, text)
	}
	return os.ReadFile(name)
}

// pack makes a zip whose entries are in order and of one time.
func pack(files map[string][]byte) ([]byte, error) {
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		header := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)}
		mode := fs.FileMode(0o644)
		if name == "bootstrap" {
			mode = 0o755
		}
		header.SetMode(mode)
		entry, err := w.CreateHeader(header)
		if err != nil {
			return nil, err
		}
		if _, err := entry.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
