package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const maxPayload = 6 << 20 // of Lambda, both ways

// function is a function of Lambda: a program behind Lambda's runtime API, and
// in front of it the call that invokes it. A sandbox starts when it is first
// needed, serves one event at a time, and is started again after it has ended.
type function struct {
	name      string
	command   []string
	env       []string
	timeout   time.Duration
	sandboxes chan *sandbox // those that are free

	mu   sync.Mutex
	logs bytes.Buffer
}

// newFunction runs up to atOnce sandboxes; they end with the test.
func newFunction(t testing.TB, name string, atOnce int, env map[string]string, command ...string) *function {
	f := &function{name: name, command: command, timeout: time.Minute, sandboxes: make(chan *sandbox, atOnce)}
	f.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"), "AWS_LAMBDA_FUNCTION_NAME=" + name, "_HANDLER=bootstrap", "AWS_REGION=us-east-1"}
	for key, value := range env {
		f.env = append(f.env, key+"="+value)
	}
	for range atOnce {
		f.sandboxes <- &sandbox{function: f}
	}
	t.Cleanup(func() {
		for range atOnce {
			(<-f.sandboxes).stop()
		}
	})
	return f
}

// Write keeps what the program writes to its standard error.
func (f *function) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs.Write(p)
}

func (f *function) log() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.logs.String()
}

// ServeHTTP is POST /2015-03-31/functions/{name}/invocations.
func (f *function) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	payload, err := io.ReadAll(io.LimitReader(r.Body, maxPayload+1))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	status, failed, body := f.invoke(r.Context(), payload)
	w.Header().Set("Content-Type", "application/json")
	if failed {
		w.Header().Set("X-Amz-Function-Error", "Unhandled")
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// invoke returns the status of the call, whether the function failed, and its
// answer or error.
func (f *function) invoke(ctx context.Context, payload []byte) (status int, failed bool, body []byte) {
	if len(payload) > maxPayload {
		return http.StatusRequestEntityTooLarge, false, []byte(`{"Type":"User","message":"Request must be smaller than 6291456 bytes for the InvokeFunction operation"}`)
	}
	select {
	case s := <-f.sandboxes:
		failed, body = s.invoke(ctx, payload)
		f.sandboxes <- s
		return http.StatusOK, failed, body
	default:
		return http.StatusTooManyRequests, false, []byte(`{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`)
	}
}

// sandbox is one process with a runtime API of its own.
type sandbox struct {
	function *function
	process  *exec.Cmd // nil if there is none
	server   *http.Server
	events   chan event
	results  chan result
	ended    chan struct{} // closed when the process has ended
	count    int
}

type event struct {
	id       string
	deadline time.Time
	payload  []byte
}

type result struct {
	id     string
	failed bool
	body   []byte
}

func (s *sandbox) start() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.events, s.results, s.ended = make(chan event), make(chan result, 1), make(chan struct{})
	s.server = &http.Server{Handler: s.api()}
	go s.server.Serve(listener) // until stop
	s.process = exec.Command(s.function.command[0], s.function.command[1:]...)
	s.process.Env = slices.Concat(s.function.env, []string{"AWS_LAMBDA_RUNTIME_API=" + listener.Addr().String()})
	s.process.Stderr = s.function
	if err := s.process.Start(); err != nil {
		return errors.Join(err, s.server.Close())
	}
	go func(p *exec.Cmd, ended chan struct{}) {
		_ = p.Wait() // how it ended is what the caller is told
		close(ended)
	}(s.process, s.ended)
	return nil
}

func (s *sandbox) stop() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill() // it may have ended
	<-s.ended
	_ = s.server.Close()
	s.process = nil
}

func failure(kind, format string, args ...any) (bool, []byte) {
	body, _ := json.Marshal(map[string]string{"errorType": kind, "errorMessage": fmt.Sprintf(format, args...)})
	return true, body
}

func (s *sandbox) invoke(ctx context.Context, payload []byte) (failed bool, body []byte) {
	used := s.process != nil
	if !used {
		if err := s.start(); err != nil {
			return failure("Runtime.InvalidEntrypoint", "%v", err)
		}
	}
	s.count++
	e := event{strconv.Itoa(s.count), time.Now().Add(s.function.timeout), payload}
	deadline := time.NewTimer(s.function.timeout)
	defer deadline.Stop()
	send := s.events
	for {
		select {
		case send <- e:
			send = nil
		case r := <-s.results:
			if r.id == e.id {
				return r.failed, r.body
			}
		case <-s.ended:
			s.stop()
			if used && send != nil { // it ended after the event before
				return s.invoke(ctx, payload)
			}
			return failure("Runtime.ExitError", "RequestId: %s Error: Runtime exited", e.id)
		case <-deadline.C:
			s.stop()
			return failure("Sandbox.Timedout", "RequestId: %s Error: Task timed out after %v", e.id, s.function.timeout)
		case <-ctx.Done():
			s.stop()
			return failure("Sandbox.Failure", "%v", ctx.Err())
		}
	}
}

// api is Lambda's runtime API, as far as a custom runtime needs it.
func (s *sandbox) api() http.Handler {
	const base = "/2018-06-01/runtime"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"/invocation/next", func(w http.ResponseWriter, r *http.Request) {
		select {
		case e := <-s.events:
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Lambda-Runtime-Aws-Request-Id", e.id)
			w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(e.deadline.UnixMilli(), 10))
			w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:123456789012:function:"+s.function.name)
			w.Header().Set("Lambda-Runtime-Trace-Id", "Root=1-5759e988-bd862e3fe1be46a994272793")
			_, _ = w.Write(e.payload)
		case <-r.Context().Done():
		}
	})
	answered := func(failed bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(io.LimitReader(r.Body, maxPayload+1))
			if err != nil {
				return
			}
			if len(body) > maxPayload {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				failed, body := failure("Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (6291556 bytes).")
				s.results <- result{r.PathValue("id"), failed, body}
				return
			}
			w.WriteHeader(http.StatusAccepted)
			s.results <- result{r.PathValue("id"), failed, body}
		}
	}
	mux.HandleFunc("POST "+base+"/invocation/{id}/response", answered(false))
	mux.HandleFunc("POST "+base+"/invocation/{id}/error", answered(true))
	mux.HandleFunc("POST "+base+"/init/error", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, maxPayload))
		fmt.Fprintf(s.function, "init/error: %s\n", strings.TrimSpace(string(body)))
		w.WriteHeader(http.StatusAccepted)
	})
	return mux
}
