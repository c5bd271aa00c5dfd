package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/rs/zerolog"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/server"
)

// decideTimeout is less than the function's own, so that an outage ends in an
// error that says so.
const decideTimeout = 8 * time.Second

// decider is what an authorizer asks; see issuerd.Decider.
type decider interface {
	// Decide returns an error that wraps an issuer.Refusal for a verdict, any
	// other if none could be reached.
	Decide(ctx context.Context, request issuer.Request) (issuer.Approved, error)
}

// authorizer answers API Gateway's question whether a request may go on to the
// issuer (a REQUEST authorizer whose answers are not cached). It decides as the
// issuer will, issues nothing, and grants nothing but that one method.
type authorizer struct {
	decider decider
	log     zerolog.Logger
}

// isMethodARN reports whether an ARN is that of one method of one stage: with a
// wildcard or a variable in it, it would be more than the called method. It is
// read by hand because an expression takes its time at every start.
func isMethodARN(arn string) bool {
	const lower, upper, digits = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
	of := func(text, set string) bool { return strings.Trim(text, set) == "" }
	name := func(text string) bool { return text != "" && of(text, lower+digits+"-") }
	fields := strings.Split(arn, ":")
	if len(fields) != 6 || fields[0] != "arn" || fields[2] != "execute-api" || !name(fields[3]) || !name(fields[4]) {
		return false
	}
	partition, isAWS := strings.CutPrefix(fields[1], "aws")
	path := strings.Split(fields[5], "/")
	if !isAWS || !of(partition, lower+"-") || len(path) < 4 {
		return false
	}
	api, stage, method := path[0], path[1], path[2]
	if !name(api) || stage == "" || !of(stage, lower+upper+digits+"_-") || method == "" || !of(method, upper) {
		return false
	}
	return !slices.ContainsFunc(path[3:], func(part string) bool { return !of(part, lower+upper+digits+"._~-") })
}

var errMethodARN = errors.New("the ARN of the called method is not one")

// invoke returns an error, and API Gateway an error of the server, only if
// there is no verdict.
func (a *authorizer) invoke(ctx context.Context, event events.APIGatewayCustomAuthorizerRequestTypeRequest) (_ events.APIGatewayCustomAuthorizerResponse, err error) {
	start := time.Now()
	defer func() {
		if recovered(a.log, recover()) {
			err = errInternal
		}
	}()
	if !isMethodARN(event.MethodArn) {
		return events.APIGatewayCustomAuthorizerResponse{}, errMethodARN
	}
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	id := hex.EncodeToString(random[:])

	header := headersOf(event.MultiValueHeaders, event.Headers)
	digest := ""
	if values := header.Values(server.HeaderCSR); len(values) == 1 {
		digest = digestOf(values[0])
	}
	ctx, cancel := context.WithTimeout(ctx, decideTimeout)
	defer cancel()
	device, err := a.decide(ctx, header)
	decided, named := server.Classify(err)
	verdict := err == nil || named != ""

	outcome, level := decided, zerolog.InfoLevel
	switch {
	case err == nil:
		outcome = "authorized"
	case !verdict:
		level = zerolog.ErrorLevel
	}
	line := a.log.WithLevel(level).Str("id", id).Str("request_id", event.RequestContext.RequestID).Str("path", event.Path).
		Str("outcome", string(outcome)).Dur("took_ms", time.Since(start))
	if device != "" {
		line = line.Str("device", device)
	}
	if named != "" {
		line = line.Str("refusal", string(named))
	}
	line.AnErr("error", err).Msg("authorization")

	if !verdict {
		return events.APIGatewayCustomAuthorizerResponse{}, fmt.Errorf("no verdict could be reached (%s)", id)
	}
	if device == "" {
		device = "unidentified-" + id // a principal there must be
	}
	effect := "Deny"
	if err == nil {
		effect = "Allow"
	}
	return events.APIGatewayCustomAuthorizerResponse{
		PrincipalID: device,
		PolicyDocument: events.APIGatewayCustomAuthorizerPolicy{
			Version: "2012-10-17",
			Statement: []events.IAMPolicyStatement{{
				Effect: effect, Action: []string{"execute-api:Invoke"}, Resource: []string{event.MethodArn},
			}},
		},
		Context: map[string]any{contextID: id, contextDigest: digest},
	}, nil
}

// decide returns the device that the request claims to be, if it claims one.
func (a *authorizer) decide(ctx context.Context, header http.Header) (device string, err error) {
	request, err := server.RequestFrom(header, nil) // an authorizer does not see the body
	if err != nil {
		return "", err
	}
	if claimed, ok := request.Claimed(); ok {
		device = claimed.String()
	}
	_, err = a.decider.Decide(ctx, request)
	return device, err
}
