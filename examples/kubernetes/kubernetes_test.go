// Package kubernetes holds manifests with a sidecar, an agent per node and an agent for External
// Secrets; this test reads them strictly and holds their parts against each other.
package kubernetes

import (
	"errors"
	"io"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

// The types are as much of the API as the manifests use, spelled as the API does; any other
// key is an error.

// Meta begins every object of the API. It is exported for the decoder, which sets it embedded.
type Meta struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name      string            `yaml:"name"`
		Namespace string            `yaml:"namespace"`
		Labels    map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
}

type namespace struct {
	Meta `yaml:",inline"`
}

type serviceAccount struct {
	Meta                         `yaml:",inline"`
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
}

type configMap struct {
	Meta `yaml:",inline"`
	Data map[string]string `yaml:"data"`
}

type pod struct {
	Meta `yaml:",inline"`
	Spec podSpec `yaml:"spec"`
}

// workload is a DaemonSet or a Deployment.
type workload struct {
	Meta `yaml:",inline"`
	Spec struct {
		Replicas int      `yaml:"replicas"`
		Selector selector `yaml:"selector"`
		Template struct {
			Metadata struct {
				Labels map[string]string `yaml:"labels"`
			} `yaml:"metadata"`
			Spec podSpec `yaml:"spec"`
		} `yaml:"template"`
	} `yaml:"spec"`
}

type selector struct {
	MatchLabels map[string]string `yaml:"matchLabels"`
}

type podSpec struct {
	RestartPolicy                string              `yaml:"restartPolicy"`
	ServiceAccountName           string              `yaml:"serviceAccountName"`
	AutomountServiceAccountToken *bool               `yaml:"automountServiceAccountToken"`
	ShareProcessNamespace        bool                `yaml:"shareProcessNamespace"`
	PriorityClassName            string              `yaml:"priorityClassName"`
	Tolerations                  []map[string]string `yaml:"tolerations"`
	SecurityContext              struct {
		RunAsNonRoot   bool   `yaml:"runAsNonRoot"`
		RunAsUser      *int64 `yaml:"runAsUser"`
		RunAsGroup     *int64 `yaml:"runAsGroup"`
		FSGroup        int64  `yaml:"fsGroup"`
		SeccompProfile struct {
			Type string `yaml:"type"`
		} `yaml:"seccompProfile"`
	} `yaml:"securityContext"`
	InitContainers []container `yaml:"initContainers"`
	Containers     []container `yaml:"containers"`
	Volumes        []volume    `yaml:"volumes"`
}

type probe struct {
	Exec struct {
		Command []string `yaml:"command"`
	} `yaml:"exec"`
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
	PeriodSeconds    int `yaml:"periodSeconds"`
	TimeoutSeconds   int `yaml:"timeoutSeconds"`
	FailureThreshold int `yaml:"failureThreshold"`
}

type container struct {
	Name          string   `yaml:"name"`
	Image         string   `yaml:"image"`
	RestartPolicy string   `yaml:"restartPolicy"`
	Command       []string `yaml:"command"`
	Args          []string `yaml:"args"`

	TerminationMessagePolicy string `yaml:"terminationMessagePolicy"`

	Ports []struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	} `yaml:"ports"`
	Env []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	StartupProbe   *probe `yaml:"startupProbe"`
	ReadinessProbe *probe `yaml:"readinessProbe"`
	LivenessProbe  *probe `yaml:"livenessProbe"`
	Resources      struct {
		Requests map[string]string `yaml:"requests"`
		Limits   map[string]string `yaml:"limits"`
	} `yaml:"resources"`
	SecurityContext struct {
		RunAsUser                *int64 `yaml:"runAsUser"`
		RunAsGroup               *int64 `yaml:"runAsGroup"`
		AllowPrivilegeEscalation *bool  `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool   `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	VolumeMounts []volumeMount `yaml:"volumeMounts"`
}

type volumeMount struct {
	Name      string `yaml:"name"`
	MountPath string `yaml:"mountPath"`
	ReadOnly  bool   `yaml:"readOnly"`
}

type volume struct {
	Name      string `yaml:"name"`
	ConfigMap *struct {
		Name string `yaml:"name"`
	} `yaml:"configMap"`
	Secret *struct {
		SecretName  string `yaml:"secretName"`
		DefaultMode int    `yaml:"defaultMode"`
	} `yaml:"secret"`
	HostPath *struct {
		Path string `yaml:"path"`
		Type string `yaml:"type"`
	} `yaml:"hostPath"`
	Projected *struct {
		Sources []struct {
			ServiceAccountToken struct {
				Audience          string `yaml:"audience"`
				ExpirationSeconds int    `yaml:"expirationSeconds"`
				Path              string `yaml:"path"`
			} `yaml:"serviceAccountToken"`
		} `yaml:"sources"`
	} `yaml:"projected"`
	EmptyDir *struct {
		Medium    string `yaml:"medium"`
		SizeLimit string `yaml:"sizeLimit"`
	} `yaml:"emptyDir"`
}

type service struct {
	Meta `yaml:",inline"`
	Spec struct {
		Selector map[string]string `yaml:"selector"`
		Ports    []struct {
			Name       string `yaml:"name"`
			Port       int    `yaml:"port"`
			TargetPort int    `yaml:"targetPort"`
		} `yaml:"ports"`
	} `yaml:"spec"`
}

type networkPolicy struct {
	Meta `yaml:",inline"`
	Spec struct {
		PodSelector selector `yaml:"podSelector"`
		PolicyTypes []string `yaml:"policyTypes"`
		Egress      []struct {
			To []struct {
				IPBlock *struct {
					CIDR   string   `yaml:"cidr"`
					Except []string `yaml:"except"`
				} `yaml:"ipBlock"`
				NamespaceSelector *selector `yaml:"namespaceSelector"`
				PodSelector       *selector `yaml:"podSelector"`
			} `yaml:"to"`
			Ports []struct {
				Protocol string `yaml:"protocol"`
				Port     int    `yaml:"port"`
			} `yaml:"ports"`
		} `yaml:"egress"`
	} `yaml:"spec"`
}

type cronJob struct {
	Meta `yaml:",inline"`
	Spec struct {
		Schedule                   string `yaml:"schedule"`
		TimeZone                   string `yaml:"timeZone"`
		ConcurrencyPolicy          string `yaml:"concurrencyPolicy"`
		StartingDeadlineSeconds    int    `yaml:"startingDeadlineSeconds"`
		SuccessfulJobsHistoryLimit int    `yaml:"successfulJobsHistoryLimit"`
		FailedJobsHistoryLimit     int    `yaml:"failedJobsHistoryLimit"`
		JobTemplate                struct {
			Spec struct {
				BackoffLimit          int `yaml:"backoffLimit"`
				ActiveDeadlineSeconds int `yaml:"activeDeadlineSeconds"`
				Template              struct {
					Spec podSpec `yaml:"spec"`
				} `yaml:"template"`
			} `yaml:"spec"`
		} `yaml:"jobTemplate"`
	} `yaml:"spec"`
}

// secretStore and externalSecret are of External Secrets.
type secretStore struct {
	Meta `yaml:",inline"`
	Spec struct {
		Provider struct {
			Webhook struct {
				URL     string            `yaml:"url"`
				Headers map[string]string `yaml:"headers"`
				Result  map[string]string `yaml:"result"`
				Timeout string            `yaml:"timeout"`
				Secrets []struct {
					Name      string            `yaml:"name"`
					SecretRef map[string]string `yaml:"secretRef"`
				} `yaml:"secrets"`
				CAProvider map[string]string `yaml:"caProvider"`
			} `yaml:"webhook"`
		} `yaml:"provider"`
	} `yaml:"spec"`
}

type externalSecret struct {
	Meta `yaml:",inline"`
	Spec struct {
		RefreshInterval string            `yaml:"refreshInterval"`
		SecretStoreRef  map[string]string `yaml:"secretStoreRef"`
		Target          map[string]string `yaml:"target"`
		Data            []struct {
			SecretKey string            `yaml:"secretKey"`
			RemoteRef map[string]string `yaml:"remoteRef"`
		} `yaml:"data"`
		DataFrom []struct {
			Extract map[string]string `yaml:"extract"`
		} `yaml:"dataFrom"`
	} `yaml:"spec"`
}

// manifest is a file with what it holds.
type manifest struct {
	accounts map[string]serviceAccount
	configs  map[string]configMap
	pods     map[string]podSpec           // of pods and templates, by the name of the object
	labels   map[string]map[string]string // of these
	objects  []any
}

// read decodes every object of a file into the type of its kind.
func read(t *testing.T, file string) manifest {
	t.Helper()
	m := manifest{accounts: map[string]serviceAccount{}, configs: map[string]configMap{}, pods: map[string]podSpec{}, labels: map[string]map[string]string{}}
	parsed, err := parser.ParseBytes([]byte(example.Read(t, file)), 0)
	example.Must(t, err)
	for _, doc := range parsed.Docs {
		var head struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string `yaml:"kind"`
		}
		example.Must(t, yaml.NodeToValue(doc.Body, &head))
		switch kind := head.APIVersion + " " + head.Kind; kind {
		case "v1 Namespace":
			m.objects = append(m.objects, decode[namespace](t, doc))
		case "v1 ServiceAccount":
			o := decode[serviceAccount](t, doc)
			m.accounts[o.Metadata.Name] = o
		case "v1 ConfigMap":
			o := decode[configMap](t, doc)
			m.configs[o.Metadata.Name] = o
		case "v1 Pod":
			o := decode[pod](t, doc)
			m.pods[o.Metadata.Name], m.labels[o.Metadata.Name] = o.Spec, o.Metadata.Labels
		case "apps/v1 DaemonSet", "apps/v1 Deployment":
			o := decode[workload](t, doc)
			m.pods[o.Metadata.Name], m.labels[o.Metadata.Name] = o.Spec.Template.Spec, o.Spec.Template.Metadata.Labels
			m.objects = append(m.objects, o)
			if got, want := o.Spec.Template.Metadata.Labels, o.Spec.Selector.MatchLabels; len(want) != 1 || got["app.kubernetes.io/name"] != want["app.kubernetes.io/name"] {
				t.Errorf("%s: labels %v, selected are %v", file, got, want)
			}
		case "batch/v1 CronJob":
			o := decode[cronJob](t, doc)
			m.pods[o.Metadata.Name] = o.Spec.JobTemplate.Spec.Template.Spec
			m.objects = append(m.objects, o)
		case "v1 Service":
			m.objects = append(m.objects, decode[service](t, doc))
		case "networking.k8s.io/v1 NetworkPolicy":
			m.objects = append(m.objects, decode[networkPolicy](t, doc))
		case "monitoring.coreos.com/v1 PodMonitor":
			m.objects = append(m.objects, decode[podMonitor](t, doc))
		case "external-secrets.io/v1 SecretStore":
			m.objects = append(m.objects, decode[secretStore](t, doc))
		case "external-secrets.io/v1 ExternalSecret":
			m.objects = append(m.objects, decode[externalSecret](t, doc))
		default:
			t.Errorf("%s: the kind %s is not known here", file, kind)
		}
	}
	return m
}

func decode[T any](t *testing.T, doc *ast.DocumentNode) (o T) {
	t.Helper()
	dec := yaml.NewDecoder(strings.NewReader(doc.Body.String()), yaml.Strict())
	example.Must(t, dec.Decode(&o))
	if err := dec.Decode(&o); !errors.Is(err, io.EOF) {
		t.Errorf("after the object: %v", err)
	}
	return o
}

// object returns the one object of a type.
func object[T any](t *testing.T, m manifest) (found T) {
	t.Helper()
	i := slices.IndexFunc(m.objects, func(o any) bool { _, ok := o.(T); return ok })
	if i < 0 {
		t.Fatalf("there is no %T", found)
	}
	return m.objects[i].(T)
}

func TestEveryManifest(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	example.Must(t, err)
	below, err := filepath.Glob("external-secrets/*.yaml")
	example.Must(t, err)
	if files = append(files, below...); len(files) < 7 {
		t.Fatalf("only %v", files)
	}
	for _, file := range files {
		t.Run(file, func(t *testing.T) {
			m := read(t, file)
			for name, p := range m.pods {
				checkPod(t, name, p, m)
			}
		})
	}
}

// checkPod looks at what every pod must have, and at the agent in it.
func checkPod(t *testing.T, name string, p podSpec, m manifest) {
	t.Helper()
	if p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken {
		t.Errorf("%s: the token for the API server is mounted", name)
	}
	if _, ok := m.accounts[p.ServiceAccountName]; !ok && p.ServiceAccountName != "" {
		t.Errorf("%s: the account %s is not in the manifest", name, p.ServiceAccountName)
	}
	volumes := map[string]volume{}
	for _, v := range p.Volumes {
		volumes[v.Name] = v
		if v.EmptyDir != nil && (v.EmptyDir.Medium != "Memory" || mebibytes(t, v.EmptyDir.SizeLimit) == 0) {
			t.Errorf("%s: the volume %s is not in memory, or has no bound", name, v.Name)
		}
	}
	for _, c := range slices.Concat(p.InitContainers, p.Containers) {
		s := c.SecurityContext
		if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) || p.SecurityContext.SeccompProfile.Type != "RuntimeDefault" {
			t.Errorf("%s: %s is not hardened", name, c.Name)
		}
		if _, tag, _ := strings.Cut(path.Base(c.Image), ":"); tag == "" || tag == "latest" {
			t.Errorf("%s: the image %s of %s has no tag that stays", name, c.Image, c.Name)
		}
		for _, mount := range c.VolumeMounts {
			if _, known := volumes[mount.Name]; !known {
				t.Errorf("%s: %s mounts %s, which is not declared", name, c.Name, mount.Name)
			}
		}
		if c.Name == "secretagent" {
			checkAgent(t, c, volumes, m)
		}
	}
}

// checkAgent looks at the container of an agent: its configuration is valid, reads and writes where
// something fitting is mounted, and no probe depends on it.
func checkAgent(t *testing.T, c container, volumes map[string]volume, m manifest) {
	t.Helper()
	if c.TerminationMessagePolicy != "FallbackToLogsOnError" {
		t.Error("kubectl describe does not show why it ended")
	}
	cfg := c.config(t, volumes, m)
	creds := cfg.Upstream.Alibaba.Credentials
	if at := path.Join(c.mount(t, "rrsa"), volumes["rrsa"].Projected.Sources[0].ServiceAccountToken.Path); string(creds.OIDCTokenFile) != at {
		t.Errorf("the token is read from %s and mounted at %s", creds.OIDCTokenFile, at)
	}
	if host := cfg.Upstream.Alibaba.Endpoints[0].Host; strings.Replace(host, "kms", "sts", 1) != creds.STSEndpoint {
		t.Errorf("KMS is at %s and STS at %s", host, creds.STSEndpoint)
	}
	checkMemory(t, c, cfg, volumes)
	for _, written := range []config.Path{cfg.Endpoint.Socket, cfg.Endpoint.TokenFile} {
		if written != "" && len(cfg.Endpoint.Callers) == 0 && c.holding(written, volumes) == nil {
			t.Errorf("%s is not where it may write", written)
		}
	}
	for _, file := range cfg.Templates {
		if c.holding(file.Destination, volumes) == nil || c.holding(cfg.Render.StateDir, volumes) == nil {
			t.Errorf("%s or %s is not where it may write", file.Destination, cfg.Render.StateDir)
		}
	}
	for _, caller := range cfg.Endpoint.Callers {
		if caller.TokenFile != "" && path.Dir(string(caller.TokenFile)) != c.mount(t, "callers") {
			t.Errorf("the token of %s is not mounted", caller.Name)
		}
	}
	checkProbes(t, c, cfg)
}

// checkMemory looks at what lies in memory.
func checkMemory(t *testing.T, c container, cfg *config.Config, volumes map[string]volume) {
	t.Helper()
	inMemory, limit := int64(0), mebibytes(t, c.Resources.Limits["memory"])
	for _, mount := range c.VolumeMounts {
		if v := volumes[mount.Name]; v.EmptyDir != nil && !mount.ReadOnly {
			inMemory += mebibytes(t, v.EmptyDir.SizeLimit)
		}
	}
	if inMemory > limit/2 {
		t.Errorf("volumes of %d bytes count against a limit of %d", inMemory, limit)
	}
	// Restarted alone, it serves without upstream: the sealed cache is where a restart of the container
	// leaves it and fits twice, as while it is rewritten. The key is in a volume of its own.
	sealed := cfg.Cache.Sealed
	cacheIn, keysIn := c.holding(sealed.Path, volumes), c.holding(sealed.Keyring, volumes)
	if cacheIn == nil || 2*int64(sealed.MaxBytes) >= mebibytes(t, cacheIn.EmptyDir.SizeLimit) || keysIn == nil || cacheIn.Name == keysIn.Name {
		t.Errorf("the sealed cache %+v is in %+v, its key in %+v", sealed, cacheIn, keysIn)
	}
}

// checkProbes looks whether the probes ask the agent where it listens, without its configuration.
func checkProbes(t *testing.T, c container, cfg *config.Config) {
	t.Helper()
	where := "--socket " + string(cfg.Endpoint.Socket)
	if cfg.Endpoint.Socket == "" {
		where = "--address " + cfg.Endpoint.Listen
	}
	for p, asks := range map[*probe]string{c.StartupProbe: "--ready --wait 5s", c.ReadinessProbe: "--live", c.LivenessProbe: "--live"} {
		if p != nil && (strings.Join(p.Exec.Command, " ") != "/secretagent status "+asks+" "+where || p.TimeoutSeconds < 5) {
			t.Errorf("the probe that should ask for %s is %+v", asks, p)
		}
	}
	if c.LivenessProbe == nil {
		t.Error("no liveness probe")
	}
}

// config returns the configuration of an agent, as it is mounted and named.
func (c container) config(t *testing.T, volumes map[string]volume, m manifest) *config.Config {
	t.Helper()
	file := path.Join(c.mount(t, "config"), "agent.yaml")
	if n := len(c.Args); n < 3 || !slices.Equal(c.Args[n-2:], []string{"--config", file}) || c.Name == "secretagent" && (n != 3 || c.Args[0] != "run") {
		t.Errorf("%v does not use %s", c.Args, file)
	}
	cfg, err := config.Parse(file, []byte(m.configs[volumes["config"].ConfigMap.Name].Data["agent.yaml"]))
	example.Must(t, err)
	return cfg
}

// holding returns the volume that path is in, where the container may write; nil: there is none.
func (c container) holding(file config.Path, volumes map[string]volume) *volume {
	for _, mount := range c.VolumeMounts {
		if v := volumes[mount.Name]; !mount.ReadOnly && strings.HasPrefix(string(file), mount.MountPath+"/") && (v.EmptyDir != nil || v.HostPath != nil) {
			return &v
		}
	}
	return nil
}

// mount returns where c mounts a volume.
func (c container) mount(t *testing.T, name string) string {
	t.Helper()
	for _, m := range c.VolumeMounts {
		if m.Name == name {
			return m.MountPath
		}
	}
	t.Fatalf("%s does not mount %s", c.Name, name)
	return ""
}

// mebibytes returns the bytes of a quantity such as 16Mi.
func mebibytes(t *testing.T, quantity string) int64 {
	t.Helper()
	number, found := strings.CutSuffix(quantity, "Mi")
	n, err := strconv.ParseInt(number, 10, 32)
	if !found || err != nil {
		t.Fatalf("%q is not a quantity in Mi", quantity)
	}
	return n << 20
}

// sidecar returns the agent of a pod, its application and its configuration.
func sidecar(t *testing.T, file, name string) (agent, app container, p podSpec, cfg *config.Config) {
	t.Helper()
	m := read(t, file)
	p = m.pods[name]
	agent, app = p.InitContainers[0], p.Containers[0]
	if agent.RestartPolicy != "Always" || agent.StartupProbe == nil {
		t.Error("the init container is no sidecar")
	}
	if app.mount(t, "shared") != agent.mount(t, "shared") || slices.ContainsFunc(app.VolumeMounts, func(m volumeMount) bool { return m.Name == "keys" || m.Name == "rrsa" }) {
		t.Error("the application looks elsewhere than the agent offers, or sees what is the agent's alone")
	}
	volumes := map[string]volume{}
	for _, v := range p.Volumes {
		volumes[v.Name] = v
	}
	return agent, app, p, agent.config(t, volumes, m)
}

// The application is of another user, and reads by the group of the volume.
func TestASidecarSharesByGroup(t *testing.T) {
	agent, app, p, cfg := sidecar(t, "sidecar.yaml", "app")
	checkMetrics(t, cfg, read(t, "sidecar.yaml").labels["app"], agent)
	if app.Env[0].Value != "http://"+cfg.Endpoint.Listen || app.Env[1].Value != string(cfg.Endpoint.TokenFile) {
		t.Error("the application looks elsewhere than the agent offers")
	}
	if s := p.SecurityContext; *app.SecurityContext.RunAsUser == *s.RunAsUser || s.FSGroup == 0 || cfg.Endpoint.TokenMode != 0o640 || cfg.Templates[0].Mode != 0o640 {
		t.Errorf("user %d, group of the volume %d, token %04o, file %04o", *app.SecurityContext.RunAsUser, s.FSGroup, cfg.Endpoint.TokenMode, cfg.Templates[0].Mode)
	}
}

// The kernel says who asks on the socket, which the group of the volume may open.
func TestASocketKnowsTheUser(t *testing.T) {
	_, app, p, cfg := sidecar(t, "socket.yaml", "socket")
	if user := *app.SecurityContext.RunAsUser; user == *p.SecurityContext.RunAsUser || !slices.Equal(cfg.Endpoint.Callers[0].UIDs, []int{int(user)}) || cfg.Endpoint.SocketMode != 0o660 || cfg.Endpoint.Listen != "" {
		t.Errorf("user %d, %+v", user, cfg.Endpoint)
	}
	if app.Env[0].Value != string(cfg.Endpoint.Socket) {
		t.Error("the application looks elsewhere than the agent offers")
	}
}

// A signal needs one user and one process namespace, and a file that says to whom.
func TestASignalCanReachTheApplication(t *testing.T) {
	agent, app, p, cfg := sidecar(t, "reload-signal.yaml", "reload")
	if !p.ShareProcessNamespace || app.SecurityContext.RunAsUser != nil || agent.SecurityContext.RunAsUser != nil {
		t.Error("no signal gets from the agent to the application")
	}
	pid := string(cfg.Templates[0].Hook.Signal.PIDFile)
	if path.Dir(pid) != app.mount(t, "pid") || path.Dir(pid) != agent.mount(t, "pid") || !strings.Contains(strings.Join(app.Command, " "), "echo $$$$ >"+pid) {
		t.Errorf("the application does not write %s", pid)
	}
}

func TestTheAgentOfTheNodeIsWhereItsApplicationAsks(t *testing.T) {
	m := read(t, "node.yaml")
	app := read(t, "node-app.yaml").pods["node-app"]
	agent := m.pods["secretagent"]
	find := func(p podSpec, name string) volume {
		return p.Volumes[slices.IndexFunc(p.Volumes, func(v volume) bool { return v.Name == name })]
	}
	if a, b := find(agent, "socket").HostPath, find(app, "socket").HostPath; a.Path != b.Path || b.Type != "Directory" || !app.Containers[0].VolumeMounts[0].ReadOnly {
		t.Errorf("%+v and %+v", a, b)
	}
	if *agent.SecurityContext.RunAsUser != 0 {
		t.Error("only root writes into a folder that the kubelet makes on the node")
	}
}

func TestExternalSecretsAsksTheAgent(t *testing.T) {
	m := read(t, "external-secrets/agent.yaml")
	p := m.pods["secretagent"]
	volumes := map[string]volume{}
	for _, v := range p.Volumes {
		volumes[v.Name] = v
	}
	cfg := p.Containers[0].config(t, volumes, m)
	if path.Dir(string(cfg.Endpoint.TLS.CertFile)) != p.Containers[0].mount(t, "tls") {
		t.Errorf("the certificate is not mounted: %+v", cfg.Endpoint.TLS)
	}
	svc, store, want := object[service](t, m), object[secretStore](t, read(t, "external-secrets/store.yaml")), object[externalSecret](t, read(t, "external-secrets/store.yaml"))
	host := svc.Metadata.Name + "." + svc.Metadata.Namespace + ".svc"
	hook := store.Spec.Provider.Webhook
	if !slices.Equal(cfg.Endpoint.AllowedHosts, []string{host}) || !strings.HasPrefix(hook.URL, "https://"+host+":"+strconv.Itoa(svc.Spec.Ports[0].Port)+"/secretsmanager/get?") {
		t.Errorf("%s is asked, %v is answered", hook.URL, cfg.Endpoint.AllowedHosts)
	}
	if !slices.Contains(cfg.Endpoint.Headers, "X-KMS-Token") || hook.Headers["X-KMS-Token"] != "{{ ."+hook.Secrets[0].Name+".token }}" || hook.CAProvider["type"] != "ConfigMap" {
		t.Errorf("%+v", hook)
	}
	i := slices.IndexFunc(cfg.Endpoint.Callers, func(c config.Caller) bool { return c.Name == store.Metadata.Namespace })
	if i < 0 || !slices.Equal(cfg.Endpoint.Callers[i].Secrets, []string{"app/*"}) || want.Spec.Data[0].RemoteRef["key"] != "app/db" || want.Spec.SecretStoreRef["name"] != store.Metadata.Name {
		t.Errorf("the namespace asks for %+v", want.Spec)
	}
}

// The policy is for the pod of sidecar.yaml and lets it ask KMS, STS and names, and not the metadata
// service.
func TestTheNetworkPolicyFitsThePod(t *testing.T) {
	policy := object[networkPolicy](t, read(t, "network-policy.yaml")).Spec
	if policy.PodSelector.MatchLabels["app.kubernetes.io/name"] != "app" || !strings.Contains(example.Read(t, "sidecar.yaml"), "labels: {app.kubernetes.io/name: app}") {
		t.Errorf("it selects %v", policy.PodSelector)
	}
	if cloud := policy.Egress[0]; !slices.Equal(cloud.To[0].IPBlock.Except, []string{"100.100.100.200/32"}) || cloud.Ports[0].Port != 443 || policy.Egress[1].Ports[0].Port != 53 {
		t.Errorf("%+v", policy.Egress)
	}
}

// TestTheJobRotatesWhatItsConfigurationSays: the secret of the command has a rotation, and the job ends.
func TestTheJobRotatesWhatItsConfigurationSays(t *testing.T) {
	m := read(t, "rotate.yaml")
	job := object[cronJob](t, m)
	p := job.Spec.JobTemplate.Spec.Template.Spec
	c := p.Containers[0]
	volumes := map[string]volume{}
	for _, v := range p.Volumes {
		volumes[v.Name] = v
	}
	cfg := c.config(t, volumes, m)
	if len(cfg.Rotations) != 1 || !slices.Equal(c.Args[:3], []string{"secret", "rotate", string(cfg.Rotations[0].Secret)}) || cfg.Rotations[0].Every != 0 {
		t.Errorf("args %v, rotations %+v", c.Args, cfg.Rotations)
	}
	if job.Spec.ConcurrencyPolicy != "Forbid" || job.Spec.JobTemplate.Spec.ActiveDeadlineSeconds == 0 || p.RestartPolicy != "Never" {
		t.Errorf("the job is %+v", job.Spec)
	}
}
