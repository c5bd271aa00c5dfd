package main

import (
	"net/http"
	"testing"
	"time"
)

// pythonRuntime is what AWS's runtime for Python does around a function, with
// nothing else in it: the least that a function in Python takes from its start
// to its first answer, with the libraries that an authorizer needs.
const pythonRuntime = `
import json, os, urllib.request
import boto3, cryptography.x509
base = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(base + "next") as r:
        id, event = r.headers["Lambda-Runtime-Aws-Request-Id"], json.load(r)
    answer = json.dumps({"principalId": "x", "policyDocument": {"Version": "2012-10-17", "Statement": []}}).encode()
    urllib.request.urlopen(urllib.request.Request(base + id + "/response", data=answer, method="POST")).close()
`

// From the start of the process to the first answer: of the authorizer, with
// its decision, against a function in Python that decides nothing. Asked: 0.05
// or less.
func BenchmarkStart(b *testing.B) {
	interpreter := python(b, "boto3, cryptography")
	w, program := newTestEnv(b), build(b)
	env := w.env(roleAuthorizer, "")
	env["LAMBDA_TASK_ROOT"] = w.root
	payload := question(b, csr(b, w.board, w.board.ID()))
	start := func(env map[string]string, command ...string) time.Duration {
		f := newFunction(b, "f", 1, env, command...)
		begin := time.Now()
		status, failed, body := f.invoke(b.Context(), payload)
		took := time.Since(begin)
		if status != http.StatusOK || failed {
			b.Fatalf("%d %s\n%s", status, body, f.log())
		}
		return took
	}
	start(env, program) // what is on disk is in memory from here on
	start(nil, interpreter, "-c", pythonRuntime)
	var ours, theirs time.Duration
	for b.Loop() {
		ours += start(env, program)
		theirs += start(nil, interpreter, "-c", pythonRuntime)
	}
	b.ReportMetric(float64(ours)/float64(theirs), "ratio")
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ms/start")
}
