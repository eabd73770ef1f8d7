package policytest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	admissionv1beta1 "k8s.io/api/admissionregistration/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const (
	withUpstream = "testdata/alibaba.yaml"           // the chart with alibaba.region
	withoutAny   = "../kustomize/base/injector.yaml" // and with its defaults
)

// injected returns a pod that the policy has changed.
func injected(t *testing.T, s server, manifest string) *corev1.Pod {
	t.Helper()
	pod := readPod(t, manifest)
	if pod.Labels == nil {
		pod.Labels = map[string]string{"secretagent.io/inject": "true"}
	}
	pod, err := s.create("apps", pod)
	must(t, err)
	if len(pod.Spec.InitContainers) == 0 || pod.Spec.InitContainers[0].Name != "secretagent" {
		t.Fatalf("no sidecar:\n%s", yamlOf(t, pod))
	}
	return pod
}

// standard returns the server that most tests share.
func standard(t *testing.T) server {
	t.Helper()
	once.Do(func() { shared = start(t, policies(t, withUpstream), map[string]string{"apps": ""}, nil) })
	return shared
}

var (
	once   sync.Once
	shared server
)

// TestPods writes the whole of what becomes of some pods; the test of examples/kubernetes reads them.
func TestPods(t *testing.T) {
	s := standard(t)
	for name, manifest := range map[string]string{
		// No volumes, no init containers, no securityContext: each list has to be made first, and a
		// list of objects in one JSON patch would make the API server panic.
		"bare": `spec: {automountServiceAccountToken: false, containers: [{name: app, image: "app:1.0.0"}]}`,
		"files": `
metadata:
  annotations:
    secretagent.io/secret-app.env: app/db, app/smtp:ACSPrevious
    secretagent.io/format-app.env: env
    secretagent.io/secret-key: app/key
    secretagent.io/mode-key: "0600"
    secretagent.io/template-pg.conf: |
      {{ with secretJSON "app/db" }}password = "{{ .password }}"{{ end }}
    secretagent.io/hook-pg.conf: http://127.0.0.1:8080/-/reload
    secretagent.io/role: acs:ram::1234567890123456:role/other
    secretagent.io/log-level: debug
spec:
  securityContext: {fsGroup: 2000}
  initContainers: [{name: migrate, image: "app:1.0.0"}]
  containers: [{name: app, image: "app:1.0.0"}]
  volumes: [{name: data, emptyDir: {}}]
`,
		"configmap": `
metadata: {annotations: {secretagent.io/config: mine}}
spec: {containers: [{name: app, image: "app:1.0.0"}]}
`,
		"once": `
metadata: {annotations: {secretagent.io/secret-db: app/db, secretagent.io/pre-populate-only: "true"}}
spec: {containers: [{name: app, image: "app:1.0.0"}]}
`,
	} {
		t.Run(name, func(t *testing.T) {
			pod := injected(t, s, manifest)
			// CEL goes through annotations in no order.
			if written, found := pod.Annotations["secretagent.io/agent.yaml"]; found {
				pod.Annotations["secretagent.io/agent.yaml"] = sorted(written)
			}
			config := &pod.Spec.Volumes[slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "secretagent-config" })]
			if config.DownwardAPI != nil {
				sort.Slice(config.DownwardAPI.Items, func(i, j int) bool { return config.DownwardAPI.Items[i].Path < config.DownwardAPI.Items[j].Path })
			}
			golden(t, filepath.Join("testdata", "pods", name+".yaml"), yamlOf(t, pod))
		})
	}
}

// sorted returns a configuration with its templates in order.
func sorted(config string) string {
	head, templates, found := strings.Cut(config, "\ntemplates:\n")
	if !found {
		return config
	}
	all := strings.Split(strings.TrimPrefix("\n"+templates, "\n  - "), "\n  - ")
	for i := range all {
		all[i] = "  - " + strings.TrimSuffix(all[i], "\n") + "\n"
	}
	slices.Sort(all)
	return head + "\ntemplates:\n" + strings.Join(all, "")
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		must(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s is another (go test -update writes it):\n%s", file, got)
	}
}

// TestOrder: the sidecar is before the pod's own init containers, and these see the files, too.
func TestOrder(t *testing.T) {
	pod := injected(t, standard(t), `
spec:
  initContainers: [{name: migrate, image: app}, {name: warm, image: app, restartPolicy: Always}]
  containers: [{name: app, image: app}, {name: web, image: app}]
`)
	var names []string
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		names = append(names, c.Name)
		if c.Name != "secretagent" && (mount(c, "/run/secretagent") != "secretagent-files" || variable(c, "SECRETS_URL") != "http://127.0.0.1:2025") {
			t.Errorf("%s does not see the files:\n%s", c.Name, yamlOf(t, c))
		}
	}
	if got := strings.Join(names, " "); got != "secretagent migrate warm app web" {
		t.Errorf("the containers are %s", got)
	}
}

// TestSomeContainers: the others see neither files nor variables.
func TestSomeContainers(t *testing.T) {
	pod := injected(t, standard(t), `
metadata: {annotations: {secretagent.io/containers: "app, migrate"}}
spec:
  initContainers: [{name: migrate, image: app}]
  containers: [{name: proxy, image: app, securityContext: {runAsUser: 1337}}, {name: app, image: app, securityContext: {runAsUser: 1000}}]
`)
	for _, c := range append(pod.Spec.InitContainers[1:], pod.Spec.Containers...) {
		if want := c.Name != "proxy"; (mount(c, "/run/secretagent") != "") != want || (variable(c, "SECRETS_URL") != "") != want {
			t.Errorf("%s:\n%s", c.Name, yamlOf(t, c))
		}
	}
	if uid := *pod.Spec.InitContainers[0].SecurityContext.RunAsUser; uid != 1000 {
		t.Errorf("the agent runs as %d, the user of a container that sees nothing", uid)
	}
}

// TestOwnThingsStay: ApplyConfiguration would replace a mount by its path and a variable by its name.
func TestOwnThingsStay(t *testing.T) {
	pod := injected(t, standard(t), `
spec:
  containers:
    - name: app
      image: app
      env: [{name: SECRETS_URL, value: mine}, {name: OTHER, value: mine}]
      volumeMounts: [{name: mine, mountPath: /run/secretagent}, {name: mine, mountPath: /data}]
    - {name: web, image: app}
  volumes: [{name: mine, emptyDir: {}}]
`)
	app, web := pod.Spec.Containers[0], pod.Spec.Containers[1]
	if mount(app, "/run/secretagent") != "mine" || mount(app, "/data") != "mine" || variable(app, "SECRETS_URL") != "mine" || variable(app, "OTHER") != "mine" {
		t.Errorf("what the pod said has changed:\n%s", yamlOf(t, app))
	}
	if variable(app, "SECRETS_TOKEN_FILE") == "" || mount(web, "/run/secretagent") != "secretagent-files" {
		t.Errorf("what it did not say is missing:\n%s", yamlOf(t, pod.Spec.Containers))
	}
}

// TestUsers: the agent runs as the user of the application where the pod tells it, and the rest read by a group.
func TestUsers(t *testing.T) {
	s := standard(t)
	for name, c := range map[string]struct {
		pod    string
		uid    int64
		groups []int64 // nil where the volume has an fsGroup
	}{
		"nobody said":          {`spec: {containers: [{name: app, image: app}]}`, 65532, []int64{65532}},
		"the pod's":            {`spec: {securityContext: {runAsUser: 1000}, containers: [{name: app, image: app}]}`, 1000, []int64{65532}},
		"the container's":      {`spec: {containers: [{name: app, image: app, securityContext: {runAsUser: 1001}}]}`, 1001, []int64{65532}},
		"container before pod": {`spec: {securityContext: {runAsUser: 1000}, containers: [{name: app, image: app, securityContext: {runAsUser: 1001}}]}`, 1001, []int64{65532}},
		"root":                 {`spec: {securityContext: {runAsUser: 0}, containers: [{name: app, image: app}]}`, 65532, []int64{65532}},
		"by annotation":        {`{metadata: {annotations: {secretagent.io/run-as-user: "2000"}}, spec: {securityContext: {runAsUser: 1000}, containers: [{name: app, image: app}]}}`, 2000, []int64{65532}},
		"fsGroup":              {`spec: {securityContext: {runAsUser: 1000, fsGroup: 3000}, containers: [{name: app, image: app}]}`, 1000, nil},
		"groups of its own":    {`spec: {securityContext: {supplementalGroups: [7]}, containers: [{name: app, image: app}]}`, 65532, []int64{7, 65532}},
		"the group is there":   {`spec: {securityContext: {supplementalGroups: [65532]}, containers: [{name: app, image: app}]}`, 65532, []int64{65532}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := injected(t, s, c.pod)
			security := pod.Spec.InitContainers[0].SecurityContext
			if *security.RunAsUser != c.uid || *security.RunAsGroup != 65532 || !*security.RunAsNonRoot {
				t.Errorf("the agent runs as\n%s", yamlOf(t, security))
			}
			if !slices.Equal(pod.Spec.SecurityContext.SupplementalGroups, c.groups) {
				t.Errorf("the groups are %v", pod.Spec.SecurityContext.SupplementalGroups)
			}
		})
	}
}

// TestAPIToken: the application keeps its token for the API server; the sidecar gets none.
func TestAPIToken(t *testing.T) {
	pod := injected(t, standard(t), `spec: {containers: [{name: app, image: app}]}`)
	if got := mount(pod.Spec.Containers[0], apiToken); got != "kube-api-access" {
		t.Errorf("the application has %q", got)
	}
	if got := mount(pod.Spec.InitContainers[0], apiToken); got != "secretagent-none" {
		t.Errorf("the sidecar has %q", got)
	}
}

// TestNamesOfSecrets: every form that the agent takes is admitted.
func TestNamesOfSecrets(t *testing.T) {
	for _, name := range []string{"a", "A/b_c+d=e.f@g-h", "app/db:ACSPrevious", "acs:kms:cn-hangzhou:1234567890123456:secret/app/db:v/2", "acs:kms:::secret/app/db"} {
		pod := injected(t, standard(t), `{metadata: {annotations: {secretagent.io/secret-x: "`+name+`"}}, spec: {containers: [{name: app, image: app}]}}`)
		if !strings.Contains(pod.Annotations["secretagent.io/agent.yaml"], `{name: "`+name+`"}`) {
			t.Errorf("%s: %s", name, pod.Annotations["secretagent.io/agent.yaml"])
		}
	}
}

// TestSecondInvocation: a mesh puts its containers in after the policy, which then runs again.
func TestSecondInvocation(t *testing.T) {
	mesh := func(pod *corev1.Pod) {
		if len(pod.Spec.Containers) == 1 {
			pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "late", Image: "late"})
			pod.Spec.InitContainers = append([]corev1.Container{{Name: "mesh", Image: "mesh"}}, pod.Spec.InitContainers...)
		}
	}
	s := start(t, policies(t, withUpstream), map[string]string{"apps": ""}, mesh)
	pod := readPod(t, `
metadata: {labels: {secretagent.io/inject: "true"}, annotations: {secretagent.io/secret-db: app/db}}
spec: {containers: [{name: app, image: app}]}
`)
	pod, err := s.create("apps", pod)
	must(t, err)
	var names []string
	for _, c := range pod.Spec.InitContainers {
		names = append(names, c.Name)
	}
	if got := strings.Join(names, " "); got != "mesh secretagent" {
		t.Errorf("the init containers are %s", got)
	}
	for _, c := range []corev1.Container{pod.Spec.InitContainers[0], pod.Spec.Containers[1]} {
		if mount(c, "/run/secretagent") != "secretagent-files" || variable(c, "SECRETS_URL") == "" {
			t.Errorf("%s came later and does not see the files", c.Name)
		}
	}
	unique(t, pod)
}

// TestAgain: a pod that was copied from a running one has it all.
func TestAgain(t *testing.T) {
	s := standard(t)
	once := injected(t, s, `{metadata: {annotations: {secretagent.io/secret-db: app/db}}, spec: {containers: [{name: app, image: app}]}}`)
	before := yamlOf(t, once)
	twice, err := s.create("apps", once.DeepCopy())
	must(t, err)
	if after := yamlOf(t, twice); after != before {
		t.Errorf("it became\n%s", after)
	}
}

// TestByHand: a pod that carries the sidecar is left alone.
func TestByHand(t *testing.T) {
	s := standard(t)
	for _, manifest := range []string{
		`{metadata: {labels: {secretagent.io/inject: "true"}}, spec: {initContainers: [{name: secretagent, image: mine, restartPolicy: Always}], containers: [{name: app, image: app}]}}`,
		`{metadata: {labels: {secretagent.io/inject: "true"}}, spec: {containers: [{name: app, image: app}, {name: secretagent, image: mine}]}}`,
	} {
		want := readPod(t, manifest)
		mountAPIToken(want)
		got, err := s.create("apps", readPod(t, manifest))
		must(t, err)
		if got, want := yamlOf(t, got.Spec), yamlOf(t, want.Spec); got != want {
			t.Errorf("it became\n%s", got)
		}
	}
}

// TestWhoIsAsked: the label of the pod, then that of its namespace; no is no.
func TestWhoIsAsked(t *testing.T) {
	s := start(t, policies(t, withUpstream), map[string]string{"silent": "", "asks": "true", "refuses": "false", "annotated": "annotated", "kube-system": "true"}, nil)
	const no = ""
	for _, c := range []struct{ namespace, label, annotation, want string }{
		{"silent", "", "", no},
		{"silent", "true", "", "injected"},
		{"silent", "false", "", no},
		{"silent", "yes", "", `label secretagent.io/inject: "yes" is neither "true" nor "false"`},
		{"silent", "", "true", no}, // Alibaba's annotation counts where the namespace says so
		{"asks", "", "", "injected"},
		{"asks", "false", "", no},
		{"refuses", "", "", no},
		{"refuses", "true", "", `the namespace has the label secretagent.io/inject: "false"`},
		{"annotated", "", "", no},
		{"annotated", "", "true", "injected"},
		{"annotated", "", "false", no},
		{"annotated", "true", "", "injected"},
		{"annotated", "false", "true", no},
		{"kube-system", "true", "", no},
		{"kube-system", "", "", no},
	} {
		t.Run(strings.Join([]string{c.namespace, c.label, c.annotation}, ","), func(t *testing.T) {
			pod := readPod(t, `spec: {containers: [{name: app, image: app}]}`)
			if c.label != "" {
				pod.Labels = map[string]string{"secretagent.io/inject": c.label}
			}
			if c.annotation != "" {
				pod.Annotations = map[string]string{"kms-agent-webhook-injector/inject": c.annotation}
			}
			pod, err := s.create(c.namespace, pod)
			got := no
			if err != nil {
				got = err.Error()
			} else if len(pod.Spec.InitContainers) > 0 {
				got = "injected"
			}
			if (c.want == no && got != no) || !strings.Contains(got, c.want) {
				t.Errorf("%q", got)
			}
		})
	}
}

// TestMirrorPods: what the kubelet tells of static pods may not change.
func TestMirrorPods(t *testing.T) {
	pod, err := standard(t).create("apps", readPod(t, `
metadata: {labels: {secretagent.io/inject: "true"}, annotations: {kubernetes.io/config.mirror: abc}}
spec: {hostNetwork: true, containers: [{name: app, image: app}]}
`))
	must(t, err)
	if len(pod.Spec.InitContainers) > 0 {
		t.Error("it was changed")
	}
}

// TestABrokenPolicyTouchesNobodyElse: the selectors come before every expression.
func TestABrokenPolicyTouchesNobodyElse(t *testing.T) {
	objects := policies(t, withUpstream)
	for _, o := range objects {
		if p, ok := o.(*admissionv1beta1.MutatingAdmissionPolicy); ok {
			p.Spec.Variables[0].Expression = "1/0 == 1 ? '' : ''"
			if p.Spec.ParamKind != nil || *p.Spec.FailurePolicy != admissionv1beta1.Fail {
				t.Error("a parameter that is missing would refuse every pod; another failurePolicy would admit pods without their secrets")
			}
		}
	}
	s := start(t, objects, map[string]string{"apps": ""}, nil)
	pod := readPod(t, `spec: {containers: [{name: app, image: app}]}`)
	if _, err := s.create("apps", pod.DeepCopy()); err != nil {
		t.Errorf("a pod that asks for nothing: %v", err)
	}
	pod.Labels = map[string]string{"secretagent.io/inject": "true"}
	if _, err := s.create("apps", pod); err == nil {
		t.Error("a pod that asks was admitted without the sidecar")
	}
}

// TestNotInjected: without the policy, a pod that asks is refused, and told.
func TestNotInjected(t *testing.T) {
	objects := slices.DeleteFunc(policies(t, withUpstream), func(o runtime.Object) bool {
		_, is := o.(*admissionv1beta1.MutatingAdmissionPolicyBinding)
		return is
	})
	s := start(t, objects, map[string]string{"apps": ""}, nil)
	pod := readPod(t, `{metadata: {labels: {secretagent.io/inject: "true"}}, spec: {containers: [{name: app, image: app}]}}`)
	if _, err := s.create("apps", pod); err == nil || !strings.Contains(err.Error(), "asked for and not injected") {
		t.Errorf("%v", err)
	}
}

// TestRestricted: a pod that meets the strictest Pod Security Standard still does.
func TestRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks())
	must(t, err)
	restricted := psa.LevelVersion{Level: psa.LevelRestricted, Version: psa.LatestVersion()}
	for _, extra := range []string{"", `secretagent.io/config: mine`, `secretagent.io/pre-populate-only: "true"`} {
		pod := injected(t, standard(t), `
metadata: {annotations: {`+extra+`}}
spec:
  automountServiceAccountToken: false
  containers:
    - name: app
      image: app
      securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
`)
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "kube-api-access" }) // of the test, without a source
		if result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec)); !result.Allowed {
			t.Errorf("%s: %s", extra, result.ForbiddenDetail())
		}
	}
}

// TestResources: by annotation; a request follows a lower limit.
func TestResources(t *testing.T) {
	s := standard(t)
	for annotations, want := range map[string]string{
		``: "limits: memory=128Mi; requests: cpu=10m memory=32Mi",
		`secretagent.io/cpu-limit: 100m, secretagent.io/cpu-request: 50m, secretagent.io/memory-limit: 64Mi, secretagent.io/memory-request: 48Mi`: "limits: cpu=100m memory=64Mi; requests: cpu=50m memory=48Mi",
		`secretagent.io/cpu-limit: 5m, secretagent.io/memory-limit: 24Mi`:                                                                         "limits: cpu=5m memory=24Mi; requests: cpu=5m memory=24Mi",
	} {
		resources := injected(t, s, `{metadata: {annotations: {`+annotations+`}}, spec: {containers: [{name: app, image: app}]}}`).Spec.InitContainers[0].Resources
		if got := "limits:" + list(resources.Limits) + "; requests:" + list(resources.Requests); got != want {
			t.Errorf("%s: %s", annotations, got)
		}
	}
}

// TestHostNetwork: while the validation is not there yet, either, the sidecar does not serve on the node's loopback.
func TestHostNetwork(t *testing.T) {
	objects := slices.DeleteFunc(policies(t, withUpstream), func(o runtime.Object) bool {
		_, is := o.(*admissionv1.ValidatingAdmissionPolicyBinding)
		return is
	})
	s := start(t, objects, map[string]string{"apps": ""}, nil)
	pod, err := s.create("apps", readPod(t, `{metadata: {labels: {secretagent.io/inject: "true"}}, spec: {hostNetwork: true, containers: [{name: app, image: app}]}}`))
	must(t, err)
	if len(pod.Spec.InitContainers) > 0 {
		t.Errorf("it was injected:\n%s", yamlOf(t, pod))
	}
}

func list(resources corev1.ResourceList) string {
	var all []string
	for name, quantity := range resources {
		all = append(all, " "+string(name)+"="+quantity.String())
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// TestWithoutUpstream: the chart with its defaults knows no upstream, so that all is in ConfigMaps.
func TestWithoutUpstream(t *testing.T) {
	s := start(t, policies(t, withoutAny), map[string]string{"apps": ""}, nil)
	for annotations, want := range map[string]string{``: "secretagent", `secretagent.io/config: mine`: "mine"} {
		pod := injected(t, s, `{metadata: {annotations: {`+annotations+`}}, spec: {containers: [{name: app, image: app}]}}`)
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == want })
		if i < 0 || pod.Spec.Volumes[i].Name != "secretagent-config" {
			t.Errorf("the ConfigMap %s is not there:\n%s", want, yamlOf(t, pod.Spec.Volumes))
		}
	}
	refused(t, s, `secretagent.io/secret-x: a`, "annotation secretagent.io/secret-x (or template-…): the chart was installed without alibaba.region")
}

// TestRefusals: every annotation with a bad value, and the message that names it.
func TestRefusals(t *testing.T) {
	s := standard(t)
	for annotations, want := range map[string]string{
		`secretagent.io/confg: x`:                                       `annotation secretagent.io/confg: there is no such annotation`,
		`secretagent.io/config: Mine`:                                   `annotation secretagent.io/config: "Mine" is not the name of a ConfigMap`,
		`secretagent.io/config: c, secretagent.io/secret-x: a`:          `annotation secretagent.io/config: a ConfigMap says everything; secret-x`,
		`secretagent.io/containers: "app,web"`:                          `annotation secretagent.io/containers: the pod has no container "web"`,
		`secretagent.io/containers: secretagent`:                        `annotation secretagent.io/containers: the pod has no container "secretagent" besides the sidecar`,
		`secretagent.io/role: app`:                                      `annotation secretagent.io/role: "app" is not the ARN of a RAM role`,
		`secretagent.io/run-as-user: root`:                              `annotation secretagent.io/run-as-user: "root" is not the number of a user`,
		`secretagent.io/run-as-user: "0"`:                               `annotation secretagent.io/run-as-user: "0" is not`,
		`secretagent.io/pre-populate-only: "yes"`:                       `annotation secretagent.io/pre-populate-only: "yes" is neither "true" nor "false"`,
		`secretagent.io/log-level: loud`:                                `annotation secretagent.io/log-level: "loud" is not debug, info, warn or error`,
		`secretagent.io/cpu-limit: lots`:                                `annotation secretagent.io/cpu-limit: "lots" is not a quantity`,
		`secretagent.io/cpu-request: "-1"`:                              `annotation secretagent.io/cpu-request: "-1" is not a quantity`,
		`secretagent.io/memory-limit: "0"`:                              `annotation secretagent.io/memory-limit: "0" is not a quantity`,
		`secretagent.io/memory-request: 64MB`:                           `annotation secretagent.io/memory-request: "64MB" is not a quantity`,
		`secretagent.io/secret-x: a b`:                                  `annotation secretagent.io/secret-x: "a b" is not the name of a secret`,
		`secretagent.io/secret-x: "a:b:c"`:                              `annotation secretagent.io/secret-x: "a:b:c" is not the name of a secret`,
		`secretagent.io/secret-x: "a:"`:                                 `annotation secretagent.io/secret-x: "a:" is not the name of a secret`,
		`secretagent.io/secret-x: "a, b"`:                               `annotation secretagent.io/secret-x: several secrets need format-x`,
		`secretagent.io/secret-x: a, secretagent.io/mode-x: "0666"`:     `annotation secretagent.io/mode-x: "0666" is not the mode of a file`,
		`secretagent.io/secret-x: a, secretagent.io/mode-x: "0040"`:     `annotation secretagent.io/mode-x: "0040" is not the mode of a file`,
		`secretagent.io/secret-x: "a,"`:                                 `annotation secretagent.io/secret-x: "a," is not the name of a secret`,
		`secretagent.io/template-x: ""`:                                 `annotation secretagent.io/template-x: "" is no template`,
		`secretagent.io/secret-x: a, secretagent.io/template-x: b`:      `annotations secretagent.io/secret-x and template-…: a file has one of them`,
		`secretagent.io/secret-token: a`:                                `annotation secretagent.io/secret-token (or template-…): the sidecar has a file of that name`,
		`secretagent.io/template-cache.db: a`:                           `the sidecar has a file of that name`,
		`secretagent.io/secret-x: a, secretagent.io/format-x: xml`:      `annotation secretagent.io/format-x: "xml" is not env, shell`,
		`secretagent.io/template-x: a, secretagent.io/format-x: env`:    `annotation secretagent.io/format-x: a template writes its own format`,
		`secretagent.io/format-x: env`:                                  `annotation secretagent.io/format-x: there is no secret-… or template-… of that name`,
		`secretagent.io/secret-x: a, secretagent.io/mode-x: "640"`:      `annotation secretagent.io/mode-x: "640" is not the mode of a file`,
		`secretagent.io/secret-x: a, secretagent.io/hook-x: http://a/b`: `annotation secretagent.io/hook-x: "http://a/b" is not a URL of the pod`,
	} {
		refused(t, s, annotations, want)
	}
	for spec, want := range map[string]string{
		`{hostNetwork: true, containers: [{name: app, image: app}]}`:                                  `hostNetwork: the sidecar would serve the pod's secrets on the loopback of the node`,
		`{os: {name: windows}, containers: [{name: app, image: app}]}`:                                `os: the sidecar runs on Linux only`,
		`{volumes: [{name: secretagent-files, emptyDir: {}}], containers: [{name: app, image: app}]}`: `volume secretagent-files: names that begin with secretagent- are for the volumes of the sidecar`,
	} {
		_, err := s.create("apps", readPod(t, `{metadata: {labels: {secretagent.io/inject: "true"}}, spec: `+spec+`}`))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", spec, err)
		}
	}
}

func refused(t *testing.T, s server, annotations, want string) {
	t.Helper()
	_, err := s.create("apps", readPod(t, `{metadata: {labels: {secretagent.io/inject: "true"}, annotations: {`+annotations+`}}, spec: {containers: [{name: app, image: app}]}}`))
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v", annotations, err)
	}
	if err != nil && strings.Contains(err.Error(), "JSONPatch") {
		t.Errorf("%s shows the policy:\n%v", annotations, err)
	}
}

// TestEveryAnnotationIsTried: one that the policy reads and no test gives a bad value is one too many.
func TestEveryAnnotationIsTried(t *testing.T) {
	text, err := os.ReadFile(withUpstream)
	must(t, err)
	tests, err := os.ReadFile("inject_test.go")
	must(t, err)
	tried := regexp.MustCompile(`(?s)func TestRefusals.*?\n}`).FindString(string(tests))
	for _, found := range regexp.MustCompile(`secretagent\.io/([a-z][a-z.-]*[a-z]|[a-z]+-)'`).FindAllStringSubmatch(string(text), -1) {
		switch name := found[1]; name {
		case "inject", "status", "agent.yaml": // a label, and two that the policy writes
		default:
			if !strings.Contains(tried, "secretagent.io/"+name) {
				t.Errorf("secretagent.io/%s has no case", name)
			}
		}
	}
}

func unique(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	seen := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		if seen[v.Name] {
			t.Errorf("volume %s is there twice", v.Name)
		}
		seen[v.Name] = true
	}
	for _, c := range append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...) {
		paths := map[string]bool{}
		for _, m := range c.VolumeMounts {
			if paths[m.MountPath] {
				t.Errorf("%s mounts %s twice", c.Name, m.MountPath)
			}
			paths[m.MountPath] = true
		}
	}
}

// mount returns the name of the volume that a container has at a path.
func mount(c corev1.Container, path string) string {
	for _, m := range c.VolumeMounts {
		if m.MountPath == path {
			return m.Name
		}
	}
	return ""
}

func variable(c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	return ""
}
