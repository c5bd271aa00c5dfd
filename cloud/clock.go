package cloud

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// serverClock remembers what time the servers said it was.
type serverClock struct {
	newest atomic.Pointer[serverTime]
}

type serverTime struct{ server, at time.Time }

// ServerTime returns the Date of the newest answer of AWS (RFC 9110, 6.6.1),
// which is in whole seconds, and when this machine received the answer; at has a
// monotonic reading. ok is false before the first answer.
func (r *AWS) ServerTime() (server, at time.Time, ok bool) {
	t := r.clock.newest.Load()
	if t == nil {
		return time.Time{}, time.Time{}, false
	}
	return t.server, t.at, true
}

// watch is an option of the clients: the answer of each attempt is looked at,
// whatever it says.
func (c *serverClock) watch(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("serverClock",
		func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
			out, metadata, err := next.HandleDeserialize(ctx, in)
			if answer, ok := out.RawResponse.(*smithyhttp.Response); ok && answer != nil {
				if server, err := http.ParseTime(answer.Header.Get("Date")); err == nil {
					c.newest.Store(&serverTime{server: server, at: time.Now()})
				}
			}
			return out, metadata, err
		}), middleware.After)
}
