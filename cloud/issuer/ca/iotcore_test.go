package ca

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"
)

// iotTest is AWS IoT Core with a registrar, and an issuer before it.
type iotTest struct {
	fake   *fakeIoT
	faults *faults
	config IoTRegistrarConfig
	local  *Local // whose certificates are valid on the test's own clock
	opened *IoTCore
}

func onIoT(t *testing.T, test func(t *testing.T, i *iotTest)) {
	t.Helper()
	awsEnvironment(t)
	synctest.Test(t, func(t *testing.T) {
		i := &iotTest{fake: newFakeIoT(), config: IoTRegistrarConfig{
			ThingGroup: "devices", Policy: "device", ThingType: "board", Attributes: map[string]string{"sku": issuertest.SKU},
		}}
		pca := newFakePCA(t) // for its CA
		i.local = &Local{key: pca.caKey, issuing: pca.ca, root: pca.root}
		var config IoTCoreConfig
		config, i.faults = i.fake.config()
		i.config.test = config.test
		test(t, i)
	})
}

func (i *iotTest) registrar(t *testing.T) *IoTRegistrar {
	t.Helper()
	r, err := OpenIoTRegistrar(t.Context(), i.config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (i *iotTest) ca(t *testing.T) *IoTCore {
	t.Helper()
	if i.opened == nil {
		var err error
		if i.opened, err = OpenIoTCore(t.Context(), IoTCoreConfig{test: i.config.test}); err != nil {
			t.Fatal(err)
		}
	}
	return i.opened
}

// active are the ids of what may connect.
func (i *iotTest) active() (ids []string) {
	for id, c := range i.fake.certificates {
		if c.state == "ACTIVE" {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Each call fails in each way, for a whole request. Asking again comes to one
// active certificate, which is the one that is answered, with all that it
// needs; what was left is inactive, and swept after an hour.
func TestIoTWeather(t *testing.T) {
	for _, operation := range []string{
		"CreateCertificateFromCsr", "DescribeCertificate", "RegisterCertificate", "RegisterCertificateWithoutCA", "CreateThing",
		"AttachThingPrincipal", "AddThingToThingGroup", "AttachPolicy", "UpdateCertificate",
	} {
		for _, name := range []string{"not applied", "lost answer", "throttled"} {
			f := fates[name]
			t.Run(operation+" "+name, func(t *testing.T) {
				onIoT(t, func(t *testing.T, i *iotTest) {
					var ca issuer.CA = i.local
					switch operation {
					case "CreateCertificateFromCsr", "DescribeCertificate":
						ca = i.ca(t)
					case "RegisterCertificate":
						i.config.CARegistered = true
						i.fake.registeredCA = i.local.issuing.Raw
					}
					w := newCAEnv(t, ca, i.registrar(t))
					i.faults.lose(operation, f, -1)
					if _, err := w.issue(t); err == nil {
						t.Fatal("no error in an outage")
					}
					if i.faults.count(operation) == 0 {
						t.Fatal("it was not called")
					}
					if f != lostAnswer && f != serverLies || operation != "UpdateCertificate" {
						if got := i.active(); len(got) != 0 {
							t.Errorf("active in an outage: %v", got)
						}
					}
					i.faults.clear()
					c, err := w.issue(t)
					if err != nil {
						t.Fatal(err)
					}
					again, err := w.issue(t)
					if err != nil || !issuertest.Equal(c, again) {
						t.Errorf("again: %v", err)
					}
					i.check(t, w, c)
				})
			})
		}
	}
}

// check sees that c is the one that may connect, with all that it needs, and
// that a sweep leaves nothing else.
func (i *iotTest) check(t *testing.T, w *caEnv, c issuer.Certificate) {
	t.Helper()
	id, device := certificateID(c.Leaf), w.board.ID.String()
	if got := i.active(); len(got) != 1 || got[0] != id {
		t.Errorf("active: %v, want %s", got, id)
	}
	stored := i.fake.certificates[id]
	if !stored.things[device] || len(stored.things) != 1 || !stored.policies["device"] || !i.fake.groups["devices"][device] ||
		i.fake.things[device].attributes["sku"] != issuertest.SKU || i.fake.things[device].kind != "board" {
		t.Errorf("it lacks something: %+v", stored)
	}
	left := i.fake.count() - 1
	ca := i.ca(t)
	for _, step := range []struct {
		after   time.Duration
		dry     bool
		swept   int
		holding int
	}{{0, false, 0, left + 1}, {61 * time.Minute, true, left, left + 1}, {0, false, left, 1}, {0, false, 0, 1}} {
		time.Sleep(step.after) // of the test's own clock
		orphans, err := ca.Sweep(t.Context(), w.claims, 0, step.dry)
		if err != nil || len(orphans) != step.swept || i.fake.count() != step.holding {
			t.Errorf("swept %v, %v; %d are left, want %d", orphans, err, i.fake.count(), step.holding)
		}
		for _, o := range orphans {
			if o.Err != nil || o.Device != w.board.ID || o.CertificateID == id || !o.Created.Before(time.Now().Add(-time.Hour)) {
				t.Errorf("swept %+v", o)
			}
		}
	}
	if i.fake.status(id) != "ACTIVE" {
		t.Error("the certificate that is used was swept")
	}
}

// What is not a claim's, or is one's, is left alone.
func TestIoTSweepKeeps(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		ca := i.ca(t)
		w := newCAEnv(t, ca, nil)
		if _, err := w.issue(t); err != nil { // inactive, and known
			t.Fatal(err)
		}
		foreign := issuertest.Approved(t)
		if _, err := ca.Issue(t.Context(), foreign, issuertest.NewClaim(t, foreign), &issuertest.MemCAState{}); err != nil { // for a key of no claim
			t.Fatal(err)
		}
		// Only the memo knows the one of a claim whose certificate was not
		// written down.
		noted := issuertest.Approved(t)
		claim, memo := issuertest.NewClaim(t, noted), &issuertest.MemCAState{}
		if _, err := ca.Issue(t.Context(), noted, claim, memo); err != nil {
			t.Fatal(err)
		}
		issuance := issuertest.Begun(claim)
		issuance.CAState = memo.Text
		if _, err := w.claims.Create(t.Context(), issuance); err != nil {
			t.Fatal(err)
		}
		// An orphan that became active is somebody's.
		lost := &issuertest.MemCAState{Fail: func(string) error { return issuertest.ErrInjected }}
		if _, err := ca.Issue(t.Context(), noted, claim, lost); !errors.Is(err, issuertest.ErrInjected) {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour) // of the test's own clock
		if orphans, err := ca.Sweep(t.Context(), w.claims, 3*time.Hour, false); err != nil || len(orphans) != 0 {
			t.Errorf("swept %v, %v before its time", orphans, err)
		}
		orphans, err := ca.Sweep(t.Context(), w.claims, 0, true)
		if err != nil || len(orphans) != 1 {
			t.Fatalf("%v, %v", orphans, err)
		}
		i.fake.set(func() { i.fake.certificates[orphans[0].CertificateID].policies["device"] = true })
		if kept, err := ca.Sweep(t.Context(), w.claims, 0, false); err != nil || len(kept) != 1 || kept[0].Err == nil ||
			!strings.Contains(kept[0].Err.Error(), "DeleteConflictException") {
			t.Errorf("one with a policy: %v, %v", kept, err)
		}
		i.fake.set(func() { i.fake.certificates[orphans[0].CertificateID].state = "ACTIVE" })
		if orphans, err := ca.Sweep(t.Context(), w.claims, 0, false); err != nil || len(orphans) != 0 || i.fake.count() != 4 {
			t.Errorf("swept %v, %v", orphans, err)
		}
		i.faults.lose("ListCertificates", throttled, -1)
		if _, err := ca.Sweep(t.Context(), w.claims, 0, false); err == nil || !strings.Contains(err.Error(), "ThrottlingException") {
			t.Errorf("throttled: %v", err)
		}
	})
}

// A certificate that was deleted before its claim was finished does not block
// the claim.
func TestIoTCertificateDeleted(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		a, ca, memo := issuertest.Approved(t), i.ca(t), &issuertest.MemCAState{}
		claim := issuertest.NewClaim(t, a)
		first, err := ca.Issue(t.Context(), a, claim, memo)
		if err != nil {
			t.Fatal(err)
		}
		i.fake.set(func() { clear(i.fake.certificates) })
		second, err := ca.Issue(t.Context(), a, claim, memo)
		if err != nil || issuertest.Equal(first, second) || i.fake.status(certificateID(second.Leaf)) != "INACTIVE" {
			t.Errorf("%v", err)
		}
		if again, err := ca.Issue(t.Context(), a, claim, memo); err != nil || !issuertest.Equal(second, again) {
			t.Errorf("again: %v", err)
		}
	})
}

func TestIoTMemoDamaged(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		a, ca, memo := issuertest.Approved(t), i.ca(t), &issuertest.MemCAState{}
		claim := issuertest.NewClaim(t, a)
		if _, err := ca.Issue(t.Context(), a, claim, memo); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"x", "{}", memo.Text + " ", strings.Replace(memo.Text, `"version":1`, `"version":2`, 1), `{"version":1,"certificateId":"00"}`} {
			if _, err := ca.Issue(t.Context(), a, claim, &issuertest.MemCAState{Text: text}); !errors.Is(err, issuer.ErrBadClaim) {
				t.Errorf("%s: %v", text, err)
			}
			if err := ca.Revoke(t.Context(), issuer.Issuance{CAState: text}, issuer.Unspecified); !errors.Is(err, issuer.ErrBadClaim) {
				t.Errorf("revoking, %s: %v", text, err)
			}
		}
	})
}

func TestIoTRegistrarRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, i *iotTest, a issuer.Approved, c *issuer.Certificate)
		is    error
		want  string
	}{
		{"revoked", func(t *testing.T, i *iotTest, a issuer.Approved, c *issuer.Certificate) {
			r := i.registrar(t)
			if err := errors.Join(r.Register(t.Context(), a.Device(), *c), r.Deactivate(t.Context(), a.Device(), *c)); err != nil {
				t.Error(err)
			}
		}, errCertificateStatus, "it is REVOKED"},
		{"another under its id", func(t *testing.T, i *iotTest, a issuer.Approved, c *issuer.Certificate) {
			other := issuertest.Approved(t)
			o, err := i.local.Issue(t.Context(), other, issuertest.NewClaim(t, other), nil)
			if err != nil {
				t.Fatal(err)
			}
			i.fake.store(c.Leaf, "INACTIVE")
			i.fake.certificates[certificateID(c.Leaf)].leaf = o.Leaf
		}, nil, "is another"},
		{"CA not registered", func(_ *testing.T, i *iotTest, _ issuer.Approved, _ *issuer.Certificate) { i.config.CARegistered = true }, nil, "CA certificate is not registered"},
		{"thing of another type", func(_ *testing.T, i *iotTest, a issuer.Approved, _ *issuer.Certificate) {
			i.fake.things[a.Device().String()] = &fakeThing{"lamp", i.config.Attributes}
		}, errThingConflict, `has the type "lamp", want "board"`},
		{"thing with other attributes", func(_ *testing.T, i *iotTest, a issuer.Approved, _ *issuer.Certificate) {
			i.fake.things[a.Device().String()] = &fakeThing{"board", map[string]string{"sku": "other"}}
		}, errThingConflict, `has sku = "other", want "widgiot"`},
		{"no such type", func(_ *testing.T, i *iotTest, _ issuer.Approved, _ *issuer.Certificate) { i.config.ThingType = "none" }, nil, "making a thing in AWS IoT Core: ResourceNotFoundException"},
		{"no such group", func(_ *testing.T, i *iotTest, _ issuer.Approved, _ *issuer.Certificate) { i.config.ThingGroup = "none" }, nil, "thing group none"},
		{"no such policy", func(_ *testing.T, i *iotTest, _ issuer.Approved, _ *issuer.Certificate) { i.config.Policy = "none" }, nil, "the policy none"},
		{"too many policies", func(t *testing.T, i *iotTest, _ issuer.Approved, c *issuer.Certificate) {
			i.fake.store(c.Leaf, "INACTIVE")
			for n := range 10 {
				i.fake.certificates[certificateID(c.Leaf)].policies[string(rune('a'+n))] = true
			}
		}, nil, "LimitExceededException"},
		{"made by IoT Core, and gone", func(_ *testing.T, _ *iotTest, _ issuer.Approved, c *issuer.Certificate) { c.Chain = nil }, nil, "ResourceNotFoundException"},
		{"no certificate", func(_ *testing.T, _ *iotTest, _ issuer.Approved, c *issuer.Certificate) { c.Leaf = []byte("x") }, nil, "CertificateValidationException"},
	} {
		t.Run(test.name, func(t *testing.T) {
			onIoT(t, func(t *testing.T, i *iotTest) {
				a := issuertest.Approved(t)
				c, err := i.local.Issue(t.Context(), a, issuertest.NewClaim(t, a), nil)
				if err != nil {
					t.Fatal(err)
				}
				test.spoil(t, i, a, &c)
				err = i.registrar(t).Register(t.Context(), a.Device(), c)
				if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if got := i.active(); len(got) != 0 {
					t.Errorf("active: %v", got)
				}
			})
		})
	}
}

// Attributes that others gave a thing stay, and are no conflict.
func TestIoTThingOfOthers(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		a := issuertest.Approved(t)
		c, err := i.local.Issue(t.Context(), a, issuertest.NewClaim(t, a), nil)
		if err != nil {
			t.Fatal(err)
		}
		i.fake.things[a.Device().String()] = &fakeThing{"board", map[string]string{"sku": issuertest.SKU, "colour": "red"}}
		if err := i.registrar(t).Register(t.Context(), a.Device(), c); err != nil {
			t.Error(err)
		}
		if i.fake.things[a.Device().String()].attributes["colour"] != "red" {
			t.Error("an attribute is lost")
		}
	})
}

func TestIoTDeactivate(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		a, r := issuertest.Approved(t), i.registrar(t)
		c, err := i.local.Issue(t.Context(), a, issuertest.NewClaim(t, a), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Deactivate(t.Context(), a.Device(), c); err != nil {
			t.Errorf("one that is not known: %v", err)
		}
		if err := r.Register(t.Context(), a.Device(), c); err != nil {
			t.Fatal(err)
		}
		i.faults.lose("UpdateCertificate", lostAnswer, 1)
		for range 2 {
			if err := r.Deactivate(t.Context(), a.Device(), c); err != nil || i.fake.status(certificateID(c.Leaf)) != "REVOKED" {
				t.Errorf("%v, it is %s", err, i.fake.status(certificateID(c.Leaf)))
			}
		}
		i.faults.lose("UpdateCertificate", serverFault, -1)
		if err := r.Deactivate(t.Context(), a.Device(), c); err == nil || !strings.Contains(err.Error(), "making a certificate REVOKED") {
			t.Errorf("an outage: %v", err)
		}
	})
}

// Where IoT Core registers by itself, what is revoked before its device has
// ever connected is registered as revoked.
func TestJITP(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		a, r := issuertest.Approved(t), i.registrar(t)
		r.config.JITP, r.config.CARegistered = true, false
		c, err := i.local.Issue(t.Context(), a, issuertest.NewClaim(t, a), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Register(t.Context(), a.Device(), c); err != nil || i.fake.count() != 0 {
			t.Errorf("registered: %v, %d", err, i.fake.count())
		}
		i.faults.lose("RegisterCertificateWithoutCA", lostAnswer, 1)
		for range 2 {
			if err := r.Deactivate(t.Context(), a.Device(), c); err != nil || i.fake.status(certificateID(c.Leaf)) != "REVOKED" {
				t.Errorf("%v, it is %s", err, i.fake.status(certificateID(c.Leaf)))
			}
		}
		b := issuertest.Approved(t)
		if c, err = i.local.Issue(t.Context(), b, issuertest.NewClaim(t, b), nil); err != nil {
			t.Fatal(err)
		}
		if err := i.registrar(t).Register(t.Context(), b.Device(), c); err != nil { // as IoT Core does at the first connection
			t.Fatal(err)
		}
		if err := r.Deactivate(t.Context(), b.Device(), c); err != nil || i.fake.status(certificateID(c.Leaf)) != "REVOKED" {
			t.Errorf("one that has connected: %v, it is %s", err, i.fake.status(certificateID(c.Leaf)))
		}
	})
}

func TestOpenIoTRegistrarRefuses(t *testing.T) {
	awsEnvironment(t)
	four := map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}
	for want, config := range map[string]IoTRegistrarConfig{
		"the thing type \"a b\"": {ThingType: "a b"}, "the thing group \"a/b\"": {ThingGroup: "a/b"}, "the policy \"ä\"": {Policy: "ä"},
		"4 attributes, at most 3": {Attributes: four}, "the attribute \"a b\"": {Attributes: map[string]string{"a b": "1"}},
		"the attribute \"a\" = \"\"": {Attributes: map[string]string{"a": ""}}, "the attribute \"a\" = \"1\\n\"": {Attributes: map[string]string{"a": "1\n"}},
		"the attribute \"a\" = \"" + strings.Repeat("1", 140) + "\"": {Attributes: map[string]string{"a": strings.Repeat("1", 801)}},
		"the attribute \"" + strings.Repeat("k", 129) + "\"":         {Attributes: map[string]string{strings.Repeat("k", 129): "1"}},
		"the thing type \"" + strings.Repeat("t", 129) + "\"":        {ThingType: strings.Repeat("t", 129)},
		"the policy \"a\\xff\"":                                      {Policy: "a\xff"},
	} {
		if _, err := OpenIoTRegistrar(t.Context(), config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	longest := map[string]string{strings.Repeat("k", 128): strings.Repeat("v", 800), "_.,@/:#=[]-": "_.,@/:#=[]-azAZ09"}
	if _, err := OpenIoTRegistrar(t.Context(), IoTRegistrarConfig{ThingType: ":_-azAZ09", Policy: strings.Repeat("p", 128), Attributes: longest}); err != nil {
		t.Errorf("what AWS takes: %v", err)
	}
}

// AWS is asked once an hour where devices connect, and an old answer is better
// than none.
func TestIoTDataEndpoint(t *testing.T) {
	onIoT(t, func(t *testing.T, i *iotTest) {
		r := i.registrar(t)
		i.faults.lose("DescribeEndpoint", serverFault, -1)
		if _, err := r.DataEndpoint(t.Context()); err == nil || !strings.Contains(err.Error(), "where devices connect") {
			t.Errorf("an outage at first: %v", err)
		}
		i.faults.clear()
		for _, step := range []struct {
			after time.Duration
			away  bool
			want  string
		}{
			{0, false, "a1-"}, {59 * time.Minute, false, "a1-"}, {time.Minute, false, "a2-"}, {2 * time.Hour, true, "a2-"}, {0, false, "a3-"},
		} {
			time.Sleep(step.after) // of the test's own clock
			i.faults.clear()
			if step.away {
				i.faults.lose("DescribeEndpoint", notApplied, -1)
			}
			if got, err := r.DataEndpoint(t.Context()); err != nil || !strings.HasPrefix(got, step.want) {
				t.Errorf("after %v: %s, %v, want %s", step.after, got, err, step.want)
			}
		}
	})
}
