package cloud

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// foreignAnswer is an answer that AWS never gives: a page for people, or
// nothing at all. A log-in page of the network (captive portal) or a proxy gives
// them, with a status that says that all is well.
type foreignAnswer struct {
	host, what string
}

func (f *foreignAnswer) Error() string { return f.what + " in place of the answer of " + f.host }

func (f *foreignAnswer) sentence() string {
	return "something between this machine and AWS answers in its place (a log-in page of the network, or a proxy): log this machine in to the network, or have IT let it reach " + f.host + " without a log-in"
}

// refuseForeignAnswers is an option of the clients: an answer that is not of
// AWS is an error, which the SDK does not retry.
func refuseForeignAnswers(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("foreignAnswers",
		func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
			out, metadata, err := next.HandleDeserialize(ctx, in)
			answer, ok := out.RawResponse.(*smithyhttp.Response)
			if err != nil || !ok || answer == nil {
				return out, metadata, err
			}
			foreign := &foreignAnswer{host: "AWS"}
			if r, ok := in.Request.(*smithyhttp.Request); ok {
				foreign.host = r.URL.Hostname()
			}
			empty := hasBody(ctx) && isEmpty(answer)
			if foreign.what = foreignReason(answer, empty); foreign.what == "" {
				return out, metadata, nil
			}
			_ = answer.Body.Close()
			return out, metadata, foreign
		}), middleware.After)
}

// noLocation is what the SDK puts into a redirection that says nothing, as those
// of S3 do.
const noLocation = "https://amazonaws.com/badhttpredirectlocation"

// foreignReason is empty for an answer that AWS may have given.
func foreignReason(answer *smithyhttp.Response, empty bool) string {
	signed := answer.Header.Get("X-Amz-Request-Id") != "" || answer.Header.Get("X-Amzn-Requestid") != ""
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	code := answer.StatusCode
	switch {
	case signed, code >= http.StatusInternalServerError && code != http.StatusNetworkAuthenticationRequired:
		return "" // of AWS; or a fault, which the SDK retries
	case kind == "text/html", kind == "application/xhtml+xml", code == http.StatusNetworkAuthenticationRequired:
		return fmt.Sprintf("a web page came (HTTP %d, %s)", code, kind)
	case code/100 == 3 && kind != "application/xml" && answer.Header.Get("Location") != "" && answer.Header.Get("Location") != noLocation:
		return fmt.Sprintf("a redirection came (HTTP %d)", code)
	case empty && code/100 == 2:
		return fmt.Sprintf("nothing came (HTTP %d)", code)
	}
	return ""
}

// hasBody tells the operations whose good answer is never empty.
func hasBody(ctx context.Context) bool {
	switch awsmiddleware.GetOperationName(ctx) {
	case "ListObjectsV2", "GetObject":
		return true
	}
	return awsmiddleware.GetServiceID(ctx) == "DynamoDB"
}

// isEmpty looks for a first byte, and leaves it there.
func isEmpty(answer *smithyhttp.Response) bool {
	if answer.Body == nil || answer.Body == http.NoBody {
		return true
	}
	body := answer.Body
	ahead := bufio.NewReader(body)
	answer.Body = struct {
		io.Reader
		io.Closer
	}{ahead, body}
	_, err := ahead.Peek(1)
	return err == io.EOF
}
