package ca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"secretfree/cloud/issuer"
)

// fakeIoT is the registry of AWS IoT Core and its own CA, by the rules of its
// API reference.
type fakeIoT struct {
	mux   http.ServeMux
	names map[string]string // of operations, by pattern

	key *ecdsa.PrivateKey

	mu           sync.Mutex // covers all below
	certificates map[string]*fakeIoTCertificate
	things       map[string]*fakeThing
	groups       map[string]map[string]bool // things in them
	policies     map[string]bool
	registeredCA []byte
	endpoints    int // how often it was asked
}

type fakeIoTCertificate struct {
	leaf     []byte
	state    string
	created  time.Time
	policies map[string]bool
	things   map[string]bool
}

type fakeThing struct {
	kind       string
	attributes map[string]string
}

type iotRequest struct {
	CertificateSigningRequest string
	CertificatePem            string
	CaCertificatePem          string
	Status                    string
	ThingTypeName             string
	AttributePayload          struct{ Attributes map[string]string }
	ThingGroupName            string
	ThingName                 string
	Target                    string
}

const fakeIoTARN = "arn:aws:iot:us-east-1:123456789012:cert/"

func newFakeIoT() *fakeIoT {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	f := &fakeIoT{
		names: map[string]string{}, key: key, certificates: map[string]*fakeIoTCertificate{}, things: map[string]*fakeThing{},
		groups: map[string]map[string]bool{"devices": {}}, policies: map[string]bool{"device": true},
	}
	for operation, route := range map[string]struct {
		pattern string
		do      func(r *http.Request, in iotRequest) any
	}{
		"CreateCertificateFromCsr":     {"POST /certificates", f.createFromCSR},
		"RegisterCertificate":          {"POST /certificate/register", f.register},
		"RegisterCertificateWithoutCA": {"POST /certificate/register-no-ca", f.register},
		"ListCertificates":             {"GET /certificates", f.list},
		"DescribeCertificate":          {"GET /certificates/{id}", f.describe},
		"UpdateCertificate":            {"PUT /certificates/{id}", f.update},
		"DeleteCertificate":            {"DELETE /certificates/{id}", f.remove},
		"CreateThing":                  {"POST /things/{thing}", f.createThing},
		"DescribeThing":                {"GET /things/{thing}", f.describeThing},
		"AttachThingPrincipal":         {"PUT /things/{thing}/principals", f.attach},
		"AddThingToThingGroup":         {"PUT /thing-groups/addThingToThingGroup", f.addToGroup},
		"AttachPolicy":                 {"PUT /target-policies/{policy}", f.attachPolicy},
		"DescribeEndpoint": {"GET /endpoint", func(r *http.Request, _ iotRequest) any {
			f.endpoints++
			return map[string]string{"endpointAddress": "a" + strconv.Itoa(f.endpoints) + "-ats.iot.us-east-1.amazonaws.com"}
		}},
	} {
		f.names[route.pattern] = operation
		f.mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			answer(w, r, func(in iotRequest) any {
				f.mu.Lock()
				defer f.mu.Unlock()
				return route.do(r, in)
			})
		})
	}
	return f
}

// operation names what a request asks for.
func (f *fakeIoT) operation(r *http.Request) string {
	_, pattern := f.mux.Handler(r)
	return f.names[pattern]
}

func (f *fakeIoT) config() (IoTCoreConfig, *faults) {
	w := newFaults(&f.mux, f.operation)
	return IoTCoreConfig{test: awsTest{w}}, w
}

func (f *fakeIoT) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.certificates)
}

// status of a certificate, or empty.
func (f *fakeIoT) status(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.certificates[id]; ok {
		return c.state
	}
	return ""
}

func (f *fakeIoT) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

var errNoSuch = fakeError{status: http.StatusNotFound, code: "ResourceNotFoundException", message: "it does not exist"}

func (f *fakeIoT) store(leaf []byte, state string) map[string]any {
	id := certificateID(leaf)
	f.certificates[id] = &fakeIoTCertificate{leaf: leaf, state: state, created: time.Now(), policies: map[string]bool{}, things: map[string]bool{}}
	return map[string]any{"certificateArn": fakeIoTARN + id, "certificateId": id, "certificatePem": string(issuer.Certificate{Leaf: leaf}.LeafPEM())}
}

func (f *fakeIoT) createFromCSR(r *http.Request, in iotRequest) any {
	block, _ := pem.Decode([]byte(in.CertificateSigningRequest))
	if block == nil || len(in.CertificateSigningRequest) > 4096 {
		return badRequest("InvalidRequestException", "The CSR is invalid")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return badRequest("InvalidRequestException", "The CSR is invalid")
	}
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "AWS IoT Certificate"}, NotBefore: time.Now().Add(-2 * time.Minute),
		NotAfter: time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	ca := &x509.Certificate{Subject: pkix.Name{OrganizationalUnit: []string{"Amazon Web Services O=Amazon.com Inc. L=Seattle ST=Washington C=US"}}}
	leaf, err := x509.CreateCertificate(rand.Reader, template, ca, csr.PublicKey, f.key)
	if err != nil {
		return badRequest("InvalidRequestException", err.Error())
	}
	state := "INACTIVE"
	if r.URL.Query().Get("setAsActive") == "true" {
		state = "ACTIVE"
	}
	return f.store(leaf, state)
}

func (f *fakeIoT) register(r *http.Request, in iotRequest) any {
	leaf, err := onePEM(in.CertificatePem)
	if err != nil {
		return badRequest("CertificateValidationException", "The certificate is invalid")
	}
	if _, err := x509.ParseCertificate(leaf); err != nil {
		return badRequest("CertificateValidationException", "The certificate is invalid")
	}
	if f.operation(r) == "RegisterCertificate" {
		if ca, err := onePEM(in.CaCertificatePem); err != nil || string(ca) != string(f.registeredCA) {
			return badRequest("CertificateValidationException", "CA certificate is not registered")
		}
	}
	if in.Status != "ACTIVE" && in.Status != "INACTIVE" && in.Status != "REVOKED" {
		return badRequest("InvalidRequestException", "status")
	}
	if _, there := f.certificates[certificateID(leaf)]; there {
		return exists(certificateID(leaf))
	}
	return f.store(leaf, in.Status)
}

func exists(id string) fakeError {
	return fakeError{http.StatusConflict, "ResourceAlreadyExistsException", "it exists already", []string{"resourceId", id, "resourceArn", fakeIoTARN + id}}
}

func (f *fakeIoT) list(r *http.Request, _ iotRequest) any {
	const most = 2 // so that there are pages
	ids := slices.Sorted(maps.Keys(f.certificates))
	start, _ := slices.BinarySearch(ids, r.URL.Query().Get("marker"))
	out := map[string]any{}
	var page []map[string]any
	for _, id := range ids[start:min(start+most, len(ids))] {
		c := f.certificates[id]
		page = append(page, map[string]any{"certificateArn": fakeIoTARN + id, "certificateId": id, "status": c.state, "creationDate": float64(c.created.Unix())})
	}
	if start+most < len(ids) {
		out["nextMarker"] = ids[start+most]
	}
	out["certificates"] = page
	return out
}

func (f *fakeIoT) describe(r *http.Request, _ iotRequest) any {
	id := r.PathValue("id")
	c, ok := f.certificates[id]
	if !ok {
		return errNoSuch
	}
	return map[string]any{"certificateDescription": map[string]any{
		"certificateArn": fakeIoTARN + id, "certificateId": id, "status": c.state, "certificatePem": string(issuer.Certificate{Leaf: c.leaf}.LeafPEM()),
	}}
}

func (f *fakeIoT) update(r *http.Request, _ iotRequest) any {
	c, ok := f.certificates[r.PathValue("id")]
	if !ok {
		return errNoSuch
	}
	state := r.URL.Query().Get("newStatus")
	if !slices.Contains([]string{"ACTIVE", "INACTIVE", "REVOKED"}, state) {
		return badRequest("InvalidRequestException", "newStatus")
	}
	c.state = state
	return map[string]string{}
}

func (f *fakeIoT) remove(r *http.Request, _ iotRequest) any {
	c, ok := f.certificates[r.PathValue("id")]
	switch {
	case !ok:
		return errNoSuch
	case c.state == "ACTIVE":
		return fakeError{status: http.StatusNotAcceptable, code: "CertificateStateException", message: "it is active"}
	case len(c.policies)+len(c.things) > 0:
		return fakeError{status: http.StatusConflict, code: "DeleteConflictException", message: "it is attached"}
	}
	delete(f.certificates, r.PathValue("id"))
	return map[string]string{}
}

func (f *fakeIoT) createThing(r *http.Request, in iotRequest) any {
	name := r.PathValue("thing")
	if !iotTakes(name, iotName, 128) || in.ThingTypeName == "" && len(in.AttributePayload.Attributes) > 3 {
		return badRequest("InvalidRequestException", "thingName or attributes")
	}
	if in.ThingTypeName != "" && in.ThingTypeName != "board" {
		return errNoSuch
	}
	if had, there := f.things[name]; there && (had.kind != in.ThingTypeName || !maps.Equal(had.attributes, in.AttributePayload.Attributes)) {
		return exists(name)
	}
	f.things[name] = &fakeThing{in.ThingTypeName, in.AttributePayload.Attributes}
	return map[string]string{"thingName": name}
}

func (f *fakeIoT) describeThing(r *http.Request, _ iotRequest) any {
	thing, ok := f.things[r.PathValue("thing")]
	if !ok {
		return errNoSuch
	}
	return map[string]any{"thingName": r.PathValue("thing"), "thingTypeName": thing.kind, "attributes": thing.attributes}
}

// principal is the certificate of an ARN.
func (f *fakeIoT) principal(arn string) *fakeIoTCertificate {
	if len(arn) < len(fakeIoTARN) {
		return nil
	}
	return f.certificates[arn[len(fakeIoTARN):]]
}

func (f *fakeIoT) attach(r *http.Request, _ iotRequest) any {
	c := f.principal(r.Header.Get("X-Amzn-Principal"))
	if c == nil || f.things[r.PathValue("thing")] == nil {
		return errNoSuch
	}
	c.things[r.PathValue("thing")] = true
	return map[string]string{}
}

func (f *fakeIoT) addToGroup(_ *http.Request, in iotRequest) any {
	if f.groups[in.ThingGroupName] == nil || f.things[in.ThingName] == nil {
		return errNoSuch
	}
	f.groups[in.ThingGroupName][in.ThingName] = true
	return map[string]string{}
}

func (f *fakeIoT) attachPolicy(r *http.Request, in iotRequest) any {
	c, policy := f.principal(in.Target), r.PathValue("policy")
	if c == nil || !f.policies[policy] {
		return errNoSuch
	}
	if !c.policies[policy] && len(c.policies) == 10 {
		return fakeError{status: http.StatusGone, code: "LimitExceededException", message: "10 policies"}
	}
	c.policies[policy] = true
	return map[string]string{}
}
