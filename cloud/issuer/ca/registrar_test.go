package ca

import (
	"testing"

	"secretfree/cloud/issuer"
	"secretfree/cloud/issuer/issuertest"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iot"
	"github.com/aws/aws-sdk-go-v2/service/iot/types"
)

// moto proves the shape of the requests, and that a certificate comes to be
// active with thing, group and policy. What it gets wrong is asserted on the
// fake.
func TestIoTRegistrarOnMoto(t *testing.T) {
	for name, registered := range map[string]bool{"CA registered": true, "without CA": false} {
		t.Run(name, func(t *testing.T) {
			endpoint := motoEndpoint(t)
			ctx := t.Context()
			client, err := IoTCoreConfig{Endpoint: endpoint}.client(ctx)
			if err != nil {
				t.Fatal(err)
			}
			suffix := map[bool]string{true: "-ca", false: "-no-ca"}[registered]
			config := IoTRegistrarConfig{
				CARegistered: registered, ThingType: "board" + suffix, ThingGroup: "devices" + suffix, Policy: "device" + suffix,
				Attributes: map[string]string{"sku": issuertest.SKU}, Endpoint: endpoint,
			}
			ca := localCA(t)
			_, _ = client.CreateThingType(ctx, &iot.CreateThingTypeInput{ThingTypeName: aws.String(config.ThingType)}) // it may be there from before
			_, _ = client.CreateThingGroup(ctx, &iot.CreateThingGroupInput{ThingGroupName: aws.String(config.ThingGroup)})
			_, _ = client.CreatePolicy(ctx, &iot.CreatePolicyInput{PolicyName: aws.String(config.Policy), PolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":[]}`)})
			if registered {
				if _, err := client.RegisterCACertificate(ctx, &iot.RegisterCACertificateInput{
					CaCertificate:           aws.String(string(issuer.Certificate{Leaf: ca.Issuing().Raw}.LeafPEM())),
					VerificationCertificate: aws.String(string(issuer.Certificate{Leaf: ca.Issuing().Raw}.LeafPEM())),
				}); err != nil {
					t.Fatal(err)
				}
			}
			r, err := OpenIoTRegistrar(ctx, config)
			if err != nil {
				t.Fatal(err)
			}
			w := newCAEnv(t, ca, r)
			c, err := w.issue(t)
			if err != nil {
				t.Fatal(err)
			}
			id, device := certificateID(c.Leaf), aws.String(w.board.ID.String())
			status := func() types.CertificateStatus {
				t.Helper()
				stored, err := describeCertificate(ctx, client, id)
				if err != nil {
					t.Fatal(err)
				}
				return stored.status
			}
			for range 2 {
				if err := r.Register(ctx, w.board.ID, c); err != nil {
					t.Fatal(err)
				}
				if got := status(); got != types.CertificateStatusActive {
					t.Errorf("it is %s", got)
				}
			}
			principals, err := client.ListThingPrincipals(ctx, &iot.ListThingPrincipalsInput{ThingName: device})
			if err != nil || len(principals.Principals) != 1 {
				t.Fatalf("%v, %v", principals, err)
			}
			policies, err := client.ListAttachedPolicies(ctx, &iot.ListAttachedPoliciesInput{Target: aws.String(principals.Principals[0])})
			if err != nil || len(policies.Policies) != 1 || aws.ToString(policies.Policies[0].PolicyName) != config.Policy {
				t.Errorf("%v, %v", policies, err)
			}
			groups, err := client.ListThingGroupsForThing(ctx, &iot.ListThingGroupsForThingInput{ThingName: device})
			if err != nil || len(groups.ThingGroups) != 1 || aws.ToString(groups.ThingGroups[0].GroupName) != config.ThingGroup {
				t.Errorf("%v, %v", groups, err)
			}
			thing, err := client.DescribeThing(ctx, &iot.DescribeThingInput{ThingName: device})
			if err != nil || thing.Attributes["sku"] != issuertest.SKU || aws.ToString(thing.ThingTypeName) != config.ThingType {
				t.Errorf("%+v, %v", thing, err)
			}
			if err := r.Deactivate(ctx, w.board.ID, c); err != nil || status() != types.CertificateStatusRevoked {
				t.Errorf("%v, it is %s", err, status())
			}
			first, err := r.DataEndpoint(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := r.DataEndpoint(ctx); err != nil || again != first {
				t.Errorf("%s, then %s, %v", first, again, err)
			}
		})
	}
}
