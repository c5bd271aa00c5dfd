// Issuer-lambda is the issuer behind API Gateway: one binary for two functions
// of AWS Lambda. The environment says which:
//
//	SECRETFREE_ROLE                issuer, which answers requests, or authorizer, which says beforehand whether the issuer would
//	SECRETFREE_CONFIG              the text of issuerd's configuration file
//	SECRETFREE_REQUIRE_AUTHORIZER  1: the issuer takes a header device-csr only if the authorizer has seen the same one
//
// The environment of a function holds 4 KB, so the keys of the stations are
// files of the package: stations/*.pub, each a station's station.pub. They
// count as if they were [[trusted_station]] in the configuration.
//
// What is wrong with the settings ends the process before it takes a request.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"os"
	"path/filepath"
	"strings"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/rs/zerolog"
	"golang.org/x/mod/sumdb/note"

	"secretfree/cloud/issuer/server"
	"secretfree/cmd/internal/issuerd"
)

const (
	roleSetting    = "SECRETFREE_ROLE"
	configSetting  = "SECRETFREE_CONFIG"
	requireSetting = "SECRETFREE_REQUIRE_AUTHORIZER"

	roleIssuer     = "issuer"
	roleAuthorizer = "authorizer"
)

func main() {
	log := zerolog.New(os.Stderr).With().Timestamp().Logger()
	handler, err := open(context.Background(), os.Getenv, taskRoot(), os.Stderr)
	if err != nil {
		log.Error().Err(err).Msg("the settings of this function")
		os.Exit(1)
	}
	serve(handler, log)
}

// serve gives a handler its events, and returns only when it is told to end.
func serve(handler any, log zerolog.Logger) {
	stdlog.SetFlags(0) // what the runtime's library has to say becomes lines like ours
	stdlog.SetOutput(log.With().Str(zerolog.LevelFieldName, zerolog.LevelWarnValue).Logger())
	lambda.Start(handler)
}

// taskRoot is where Lambda unpacks the package.
func taskRoot() string {
	if root := os.Getenv("LAMBDA_TASK_ROOT"); root != "" {
		return root
	}
	return "."
}

// open makes the handler of the role. It calls nothing outside this machine but
// for what keys in KMS need, so that another outage does not keep a function
// from starting, and the first request waits for nothing.
func open(ctx context.Context, getenv func(string) string, root string, logs io.Writer) (any, error) {
	role := getenv(roleSetting)
	if role != roleIssuer && role != roleAuthorizer {
		return nil, fmt.Errorf("%s is %q, want %q or %q", roleSetting, role, roleIssuer, roleAuthorizer)
	}
	require := getenv(requireSetting)
	if require != "" && require != "0" && require != "1" {
		return nil, fmt.Errorf("%s is %q, want 1, 0 or nothing", requireSetting, require)
	}
	config, err := configuration(getenv(configSetting), filepath.Join(root, "stations"))
	if err != nil {
		return nil, err
	}
	log, err := issuerd.NewLog(logs, config)
	if err != nil {
		return nil, err
	}
	log = log.With().Str("role", role).Logger()
	if role == roleAuthorizer {
		decider, err := config.OpenDecider(ctx)
		if err != nil {
			return nil, err
		}
		return (&authorizer{decider: decider, log: log}).invoke, nil
	}
	i, err := config.OpenIssuer(ctx)
	if err != nil {
		return nil, err
	}
	f := &gatewayHandler{requireAuthorizer: require == "1", log: log}
	doors := i.HandlerConfig(config.Limits)
	doors.Log = f.decided
	if f.handler, err = server.NewHandler(doors); err != nil {
		return nil, err
	}
	return f.invoke, nil
}

// configuration is a text and the keys of stations beside it.
func configuration(text, stations string) (issuerd.Config, error) {
	if strings.TrimSpace(text) == "" {
		return issuerd.Config{}, fmt.Errorf("%s is empty: it takes the text of an issuerd.toml", configSetting)
	}
	names, err := filepath.Glob(filepath.Join(stations, "*.pub")) // sorted
	if err != nil {
		return issuerd.Config{}, fmt.Errorf("looking for the keys of stations: %w", err)
	}
	for _, name := range names {
		key, err := os.ReadFile(name)
		if err != nil {
			return issuerd.Config{}, fmt.Errorf("reading the key of a station: %w", err)
		}
		line := strings.TrimSpace(string(key))
		verifier, err := note.NewVerifier(line)
		if err != nil || strings.ContainsAny(line, "'\n") {
			return issuerd.Config{}, fmt.Errorf("%s is not the station.pub of a station: %w", name, errors.Join(err, errNotOneLine))
		}
		text += fmt.Sprintf("\n[[trusted_station]]\nname = '%s'\nkey = '%s'\n", verifier.Name(), line)
	}
	return issuerd.Parse(configSetting, []byte(text))
}

var errNotOneLine = errors.New("want its one line")
