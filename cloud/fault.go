package cloud

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// maxFaultText caps what is shown of an error's own text, in bytes.
const maxFaultText = 300

// fault is an error of a call to AWS, with a sentence for those who can mend
// it.
type fault struct {
	doing    string
	sentence string // empty if there is none for this error
	text     string // of the error itself
	err      error
}

func (f *fault) Error() string {
	if f.sentence == "" {
		return f.doing + ": " + f.text
	}
	return f.doing + ": " + f.sentence + " (" + f.text + ")"
}

func (f *fault) Unwrap() error { return f.err }

func (a *AWS) fault(doing string, err error) error {
	f := &fault{doing: doing, err: err, text: err.Error()}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		f.sentence = a.explain(api.ErrorCode(), api.ErrorMessage(), err)
		f.text = api.ErrorCode()
		if !strings.Contains(api.ErrorCode(), "Signature") {
			// The message of a signature error quotes the request's headers,
			// the session token among them.
			f.text += ": " + api.ErrorMessage()
		}
	} else {
		f.sentence = explainTransport(err)
	}
	f.text = strings.Join(strings.Fields(f.text), " ")
	if len(f.text) > maxFaultText {
		f.text = strings.ToValidUTF8(f.text[:maxFaultText], "") + "…"
	}
	return f
}

// explain is for an error that S3 or DynamoDB answered. Credentials that were
// refused are looked for anew.
func (a *AWS) explain(code, message string, err error) string {
	where := " in region " + a.config.Region
	switch code {
	case "ResourceNotFoundException":
		return "there is no table " + a.config.Table + where + ": correct table and region in the configuration, or create the table"
	case "NoSuchBucket":
		return "there is no bucket " + a.config.Bucket + where + ": correct bucket and region in the configuration, or create the bucket"
	case "PermanentRedirect", "TemporaryRedirect", "MovedPermanently", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException":
		return "the bucket " + a.config.Bucket + " is in another region than " + a.config.Region + ": correct region in the configuration"
	case "AccessDenied", "Forbidden", "AllAccessDisabled": // of S3
		return "AWS knows these credentials but does not permit this: allow it in the IAM role of this machine and in the policy of bucket " + a.config.Bucket + ", and make sure that the bucket is yours"
	case "AccessDeniedException":
		return "AWS knows these credentials but does not permit this: allow it in the IAM role of this machine"
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired":
		a.credentials.Invalidate()
		return "the AWS credentials have expired: renew them (they are picked up without a restart)"
	case "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "InvalidToken", "MissingAuthenticationToken", "MissingAuthenticationTokenException":
		a.credentials.Invalidate()
		return "AWS does not know these credentials: correct them on this machine (they are picked up without a restart)"
	case "RequestTimeTooSkewed":
		return clockSentence
	case "SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature":
		if strings.Contains(message, "expired") || strings.Contains(message, "not yet current") {
			return clockSentence
		}
		a.credentials.Invalidate()
		return "the secret key does not belong to the access key: correct the AWS credentials of this machine (they are picked up without a restart)"
	case "ConditionalRequestConflict", "TransactionInProgressException", "TransactionConflictException":
		return "another writer is at the same item: it is tried again later"
	case "ThrottlingException", "Throttling", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "SlowDown",
		"ServiceUnavailable", "TooManyRequestsException":
		return busySentence
	case "ValidationException":
		return "the table " + a.config.Table + " may have the wrong shape: its partition key must be device-id (S), without a sort key"
	}
	if canceled, ok := errors.AsType[*types.TransactionCanceledException](err); ok {
		return a.explainCanceled(canceled)
	}
	if status(err) >= http.StatusInternalServerError {
		return "AWS has a fault of its own: it is tried again later"
	}
	return ""
}

func (a *AWS) explainCanceled(canceled *types.TransactionCanceledException) string {
	for _, reason := range canceled.CancellationReasons {
		switch aws.ToString(reason.Code) {
		case "TransactionConflict":
			return "another writer is at the same item: it is tried again later"
		case "ThrottlingError", "ProvisionedThroughputExceeded":
			return busySentence
		case "ValidationError":
			return a.explain("ValidationException", "", nil)
		}
	}
	return ""
}

// explainTransport is for an error without an answer.
func explainTransport(err error) string {
	var (
		dns  *net.DNSError
		send *smithyhttp.RequestSendError
		read *smithy.DeserializationError
	)
	foreign, isForeign := errors.AsType[*foreignAnswer](err)
	switch {
	case errors.Is(err, context.Canceled):
		return ""
	case isForeign:
		return foreign.sentence()
	case errors.Is(err, errNotHeld):
		return "look for a proxy, a cache or a log-in page of the network between this machine and AWS; what is not there is sent again"
	case strings.Contains(err.Error(), "get identity: "), strings.Contains(err.Error(), "failed to refresh cached credentials"):
		return "no AWS credentials were found: give this machine a role or a credentials file (they are picked up without a restart)"
	case strings.Contains(err.Error(), "proxyconnect "):
		return "the proxy does not answer: check HTTPS_PROXY in the environment of stationd, and the proxy"
	case isCertificate(err):
		return "the server's certificate is not trusted: something on the way (a proxy that looks into TLS) may answer in its place: have its CA trusted by this machine, or named in AWS_CA_BUNDLE"
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %s is not found: check the network, the name servers and the region in the configuration", dns.Name)
	case errors.As(err, &send), errors.Is(err, context.DeadlineExceeded):
		return "no answer from AWS: check the network, the proxy and the firewall"
	case errors.As(err, &read):
		return "the answer makes no sense, or was cut short: look for a proxy between this machine and AWS"
	}
	return ""
}

// isCertificate tells the errors of a certificate that is not good for the
// name, or not of a CA that is trusted.
func isCertificate(err error) bool {
	_, bad := errors.AsType[*tls.CertificateVerificationError](err)
	return bad
}

const (
	clockSentence = "the clock of this machine is wrong: set it (NTP)"
	busySentence  = "AWS asks to slow down: it is tried again later"
)
