package helm

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/millrace/millrace/pkg/config"

	_ "github.com/prometheus/prometheus/discovery/kubernetes" // the default configuration uses it
)

var update = flag.Bool("update", false, "write what the chart renders to ../kubernetes/millrace.yaml")

const (
	static = "../kubernetes/millrace.yaml"
	header = "# What the chart in ../helm/millrace renders with its default values, in the namespace millrace. Made by: go test ./deploy/helm -update\n"
)

var services = []string{"discovery", "scraper", "ingest", "relabel", "writer"}

// scaled are the services that the chart scales by their CPU.
var scaled = []string{"scraper", "ingest"}

// helm runs helm, which .ci/helm builds. Where it is missing the test is skipped, but fails in CI.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	binary, err := filepath.Abs("../../.ci/cache/helm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		if binary, err = exec.LookPath("helm"); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal("helm is missing: run .ci/helm")
			}
			t.Skip("helm is missing: .ci/helm builds it")
		}
	}
	cmd := exec.Command(binary, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("helm %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func render(t *testing.T, release string, settings ...string) string {
	t.Helper()
	args := []string{"template", release, "millrace", "--namespace=millrace"}
	for _, s := range settings {
		args = append(args, "--set="+s)
	}
	out, err := helm(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// objects decodes what was rendered into Kubernetes's own types. Unknown and repeated fields, and values of another type, are errors.
func objects(t *testing.T, rendered string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	reader := yaml.NewDocumentDecoder(io.NopCloser(strings.NewReader(rendered)))
	defer reader.Close()
	var list []runtime.Object
	buffer := make([]byte, 1<<20)
	for {
		n, err := reader.Read(buffer)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		doc := buffer[:n]
		if len(bytes.TrimSpace(stripComments(doc))) == 0 {
			continue
		}
		o, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("%v in\n%s", err, doc)
			continue
		}
		list = append(list, o)
	}
}

func stripComments(doc []byte) []byte {
	var kept [][]byte
	for line := range bytes.Lines(doc) {
		if !bytes.HasPrefix(line, []byte("#")) && !bytes.HasPrefix(line, []byte("---")) {
			kept = append(kept, line)
		}
	}
	return bytes.Join(kept, nil)
}

func find[T runtime.Object](list []runtime.Object) (found []T) {
	for _, o := range list {
		if x, ok := o.(T); ok {
			found = append(found, x)
		}
	}
	return found
}

// TestChart renders the chart with several values and checks what every rendering must fulfil.
func TestChart(t *testing.T) {
	if out, err := helm(t, "lint", "--strict", "millrace"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, c := range []struct {
		name, release string
		settings      []string
		args          []string // of each container, SERVICE for the service
		autoscaled    []string
		configMap     bool
	}{
		{"default", "millrace", nil, nil, scaled, true},
		{"password and TLS", "metrics", []string{"nats.auth.secret=users", "nats.tls.secret=ca"},
			[]string{"--nats.user=SERVICE", "--nats.password-file=/etc/nats-auth/auth", "--nats.tls.ca-file=/etc/nats-tls/ca.crt"}, scaled, true},
		{"credentials and mutual TLS", "metrics", []string{"nats.auth.secret=users", "nats.auth.kind=creds", "nats.tls.secret=ca", "nats.tls.clientCertificate=true"},
			[]string{"--nats.creds=/etc/nats-auth/auth", "--nats.tls.cert-file=/etc/nats-tls/tls.crt", "--nats.tls.key-file=/etc/nats-tls/tls.key"}, scaled, true},
		{"NKey", "metrics", []string{"nats.auth.secret=users", "nats.auth.kind=nkey"}, []string{"--nats.nkey-seed-file=/etc/nats-auth/auth"}, scaled, true},
		{"fixed size", "metrics", []string{"scraper.autoscaling.enabled=false", "scraper.replicas=5", "podDisruptionBudget.enabled=false", "rbac.create=false"}, nil, []string{"ingest"}, true},
		{"ingest of fixed size", "metrics", []string{"ingest.autoscaling.enabled=false", "ingest.replicas=3", "ingest.service.type=LoadBalancer", "ingest.service.annotations.a=b"}, nil, []string{"scraper"}, true},
		{"without ingest", "metrics", []string{"ingest.enabled=false"}, nil, []string{"scraper"}, true},
		{"configuration from a secret", "metrics", []string{"configSecret=mine"}, nil, scaled, false},
		{"everything else", "metrics", []string{
			"image.tag=v9", "imagePullSecrets[0].name=pull", "priorityClassName=high", "nodeSelector.disk=fast", "tolerations[0].operator=Exists", "writer.annotations.a=b",
			"extraVolumes[0].name=x", "extraVolumes[0].secret.secretName=x", "extraVolumeMounts[0].name=x", "extraVolumeMounts[0].mountPath=/x",
			"serviceAccount.annotations.a=b", "scrapeItself=false", "logLevel=debug", "config.millrace.streams.partitions=32", "config.millrace.nats.prefix=other",
		}, []string{"--log.level=debug"}, scaled, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			list := objects(t, render(t, c.release, c.settings...))
			services := services
			if slices.Contains(c.settings, "ingest.enabled=false") {
				services = slices.DeleteFunc(slices.Clone(services), func(s string) bool { return s == "ingest" })
			}
			deployments := find[*appsv1.Deployment](list)
			if len(deployments) != len(services) {
				t.Fatalf("%d deployments, want %d", len(deployments), len(services))
			}
			for i, d := range deployments {
				service := services[i]
				checkDeployment(t, list, d, service)
				for _, arg := range append([]string{"run", "--services=SERVICE"}, c.args...) {
					arg = strings.ReplaceAll(arg, "SERVICE", service)
					if !slices.Contains(d.Spec.Template.Spec.Containers[0].Args, arg) {
						t.Errorf("%s lacks the argument %s: %q", d.Name, arg, d.Spec.Template.Spec.Containers[0].Args)
					}
				}
			}
			checkIngest(t, list, slices.Contains(c.settings, "ingest.service.type=LoadBalancer"))
			checkAutoscaler(t, list, c.autoscaled)
			checkConfig(t, list, c.configMap)
			checkRoles(t, list)
		})
	}
	if _, err := helm(t, "template", "x", "millrace", "--set=nats.auth.secret=s,nats.auth.kind=other"); err == nil || !strings.Contains(err.Error(), "choose password, creds or nkey") {
		t.Errorf("with an unknown kind of authentication: %v", err)
	}
}

// TestStaticManifests compares the manifests for those who do not use helm with what the chart renders.
func TestStaticManifests(t *testing.T) {
	want := header + render(t, "millrace")
	if *update {
		if err := os.WriteFile(static, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(static)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Errorf("%s is not what the chart renders: go test ./deploy/helm -update", static)
	}
	namespace, err := os.ReadFile("../kubernetes/namespace.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if list := objects(t, string(namespace)); len(list) != 1 {
		t.Errorf("namespace.yaml has %d objects", len(list))
	}
}

// TestVersionsAgree keeps the image of docker-compose.yml and the chart's together.
func TestVersionsAgree(t *testing.T) {
	compose, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range find[*appsv1.Deployment](objects(t, render(t, "millrace"))) {
		if image := d.Spec.Template.Spec.Containers[0].Image; !strings.Contains(string(compose), "image: "+image+"\n") {
			t.Errorf("docker-compose.yml does not use %s", image)
		}
	}
}

func checkDeployment(t *testing.T, list []runtime.Object, d *appsv1.Deployment, service string) {
	t.Helper()
	if !strings.HasSuffix(d.Name, "-"+service) || d.Namespace != "millrace" {
		t.Errorf("deployment %s/%s is not that of %s", d.Namespace, d.Name, service)
	}
	if d.Spec.Replicas != nil && *d.Spec.Replicas < 2 || d.Spec.Replicas == nil && !slices.Contains(scaled, service) {
		t.Errorf("%s has too few replicas", d.Name)
	}
	pod := d.Spec.Template
	matches := func(what string, s *metav1.LabelSelector) {
		t.Helper()
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s of %s does not select its pods: %v", what, d.Name, err)
		}
	}
	matches("the selector", d.Spec.Selector)
	matches("the anti-affinity", pod.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution[0].PodAffinityTerm.LabelSelector)
	for _, b := range find[*policyv1.PodDisruptionBudget](list) {
		if b.Name == d.Name {
			matches("the disruption budget", b.Spec.Selector)
		}
	}
	c := pod.Spec.Containers[0]
	for _, s := range find[*corev1.Service](list) {
		if s.Name == d.Name {
			matches("the service", &metav1.LabelSelector{MatchLabels: s.Spec.Selector})
			if len(s.Spec.Ports) != len(c.Ports) {
				t.Errorf("service %s has %d ports, its containers %d", s.Name, len(s.Spec.Ports), len(c.Ports))
			}
			for i, port := range s.Spec.Ports {
				if port.TargetPort.String() != c.Ports[i].Name || port.Port != c.Ports[i].ContainerPort {
					t.Errorf("port %d of service %s leads to port %s, which is %+v", port.Port, s.Name, port.TargetPort.String(), c.Ports[i])
				}
			}
		}
	}
	p, s := pod.Spec.SecurityContext, c.SecurityContext
	if !*p.RunAsNonRoot || *p.RunAsUser == 0 || p.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || *s.AllowPrivilegeEscalation ||
		!*s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("%s may more than it needs: %+v %+v", d.Name, p, s)
	}
	if token := *pod.Spec.AutomountServiceAccountToken; token != (service == "discovery" || service == "scraper") {
		t.Errorf("%s has a token for the API server: %t", d.Name, token)
	}
	if c.LivenessProbe.HTTPGet.Path != "/-/healthy" || c.ReadinessProbe.HTTPGet.Path != "/-/ready" || c.StartupProbe.HTTPGet.Path != "/-/healthy" ||
		c.LivenessProbe.HTTPGet.Port.String() != c.Ports[0].Name || c.ReadinessProbe.HTTPGet.Port.String() != c.Ports[0].Name {
		t.Errorf("probes of %s: %+v %+v", d.Name, c.LivenessProbe, c.ReadinessProbe)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
		if v.Name == "nats-auth" && (len(v.Secret.Items) != 1 || v.Secret.Items[0].Key != service) {
			t.Errorf("%s gets the keys %+v", d.Name, v.Secret.Items)
		}
	}
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("%s mounts %s, which is no volume", d.Name, m.Name)
		}
	}
	if !slices.ContainsFunc(find[*corev1.ServiceAccount](list), func(a *corev1.ServiceAccount) bool { return a.Name == pod.Spec.ServiceAccountName }) {
		t.Errorf("%s uses the account %s, which does not exist", d.Name, pod.Spec.ServiceAccountName)
	}
}

// checkIngest checks that the service which applications push to is there with its ports, where its deployment is, and that the receiver of remote_write is on.
func checkIngest(t *testing.T, list []runtime.Object, outside bool) {
	t.Helper()
	for _, d := range find[*appsv1.Deployment](list) {
		if on := slices.Contains(d.Spec.Template.Spec.Containers[0].Args, "--web.enable-remote-write-receiver"); on != strings.HasSuffix(d.Name, "-ingest") {
			t.Errorf("%s receives remote_write: %t", d.Name, on)
		}
	}
	for _, s := range find[*corev1.Service](list) {
		want := map[string]int32{"http": 9474}
		kind, annotations := corev1.ServiceType(""), 0
		if strings.HasSuffix(s.Name, "-ingest") {
			want["otlp-grpc"], want["otlp-http"] = 4317, 4318
			if kind = corev1.ServiceTypeClusterIP; outside {
				kind, annotations = corev1.ServiceTypeLoadBalancer, 1
			}
		}
		ports := map[string]int32{}
		for _, p := range s.Spec.Ports {
			ports[p.Name] = p.Port
		}
		if !maps.Equal(ports, want) || s.Spec.Type != kind || len(s.Annotations) != annotations {
			t.Errorf("service %s has the ports %v, the type %q and the annotations %v", s.Name, ports, s.Spec.Type, s.Annotations)
		}
	}
}

// checkAutoscaler checks that these services are scaled, and that nothing else sets their numbers of replicas.
func checkAutoscaler(t *testing.T, list []runtime.Object, want []string) {
	t.Helper()
	var targets []string
	for _, s := range find[*autoscalingv2.HorizontalPodAutoscaler](list) {
		targets = append(targets, s.Spec.ScaleTargetRef.Name)
	}
	if len(targets) != len(want) {
		t.Fatalf("autoscalers of %q, want those of %q", targets, want)
	}
	for _, d := range find[*appsv1.Deployment](list) {
		is := slices.Contains(targets, d.Name)
		if should := slices.Contains(want, d.Name[strings.LastIndexByte(d.Name, '-')+1:]); is != should || is != (d.Spec.Replicas == nil) {
			t.Errorf("%s is scaled: %t, want %t, and has a number of replicas: %t", d.Name, is, should, d.Spec.Replicas != nil)
		}
	}
}

// checkConfig reads the configuration as the processes do.
func checkConfig(t *testing.T, list []runtime.Object, want bool) {
	t.Helper()
	maps := find[*corev1.ConfigMap](list)
	if want != (len(maps) == 1) {
		t.Fatalf("%d config maps", len(maps))
	}
	for _, m := range maps {
		file := filepath.Join(t.TempDir(), "prometheus.yml")
		if err := os.WriteFile(file, []byte(m.Data["prometheus.yml"]), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(file, slog.New(slog.DiscardHandler), func(*config.Millrace) {})
		if err != nil {
			t.Errorf("%v\n%s", err, m.Data["prometheus.yml"])
			continue
		}
		if n := cfg.Millrace; n.NATS.URL != "nats://nats:4222" || n.Streams.Replicas != 3 {
			t.Errorf("the configuration has NATS at %q with %d replicas", n.NATS.URL, n.Streams.Replicas)
		}
		if o := cfg.Millrace.Ingest.OTLP; o.GRPC.Listen != ":4317" || o.HTTP.Listen != ":4318" {
			t.Errorf("OTLP is listened for on %q and %q, which the service does not lead to", o.GRPC.Listen, o.HTTP.Listen)
		}
	}
}

func checkRoles(t *testing.T, list []runtime.Object) {
	t.Helper()
	roles := find[*rbacv1.ClusterRole](list)
	for _, b := range find[*rbacv1.ClusterRoleBinding](list) {
		if !slices.ContainsFunc(roles, func(r *rbacv1.ClusterRole) bool { return r.Name == b.RoleRef.Name }) {
			t.Errorf("%s is for the role %s, which does not exist", b.Name, b.RoleRef.Name)
		}
		if !slices.ContainsFunc(find[*corev1.ServiceAccount](list), func(a *corev1.ServiceAccount) bool { return a.Name == b.Subjects[0].Name }) {
			t.Errorf("%s is for the account %s, which does not exist", b.Name, b.Subjects[0].Name)
		}
	}
	for _, r := range roles {
		for _, rule := range r.Rules {
			for _, verb := range rule.Verbs {
				if !slices.Contains([]string{"get", "list", "watch"}, verb) {
					t.Errorf("role %s may %s %q", r.Name, verb, rule.Resources)
				}
			}
		}
	}
}
