// Package policytest runs what the chart renders in the admission plugins of the API server.
//
// It is a module of its own because it needs Kubernetes' libraries, which are none of the agent's.
// .ci/helm holds testdata/*.yaml against the chart; with -update, the test writes testdata/pods.
package policytest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/initializer"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/discovery"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/openapi"
	"k8s.io/client-go/openapi/openapitest"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the pods of testdata")

// server is the part of an API server that admits pods: the plugins, in the order in which it runs them.
type server struct {
	chain admission.MutationInterface
}

// client offers the schemas of Kubernetes, which ApplyConfiguration needs, and the objects of a test.
type client struct {
	kubernetes.Interface
}

func (c client) Discovery() discovery.DiscoveryInterface { return schemas{c.Interface.Discovery()} }

type schemas struct {
	discovery.DiscoveryInterface
}

func (schemas) OpenAPIV3() openapi.Client { return recent{openapitest.NewEmbeddedFileClient()} }

// recent adds the one field to the schemas of client-go's tests that they are too old for.
type recent struct {
	openapi.Client
}

func (c recent) Paths() (map[string]openapi.GroupVersion, error) {
	paths, err := c.Client.Paths()
	paths["api/v1"] = withSidecars{paths["api/v1"]}
	return paths, err
}

type withSidecars struct {
	openapi.GroupVersion
}

func (v withSidecars) Schema(contentType string) ([]byte, error) {
	text, err := v.GroupVersion.Schema(contentType)
	const container = `"io.k8s.api.core.v1.Container": {`
	at := bytes.Index(text, []byte(container))
	if err != nil || at < 0 {
		return nil, fmt.Errorf("no schema of containers: %w", err)
	}
	const properties = `"properties": {`
	at += bytes.Index(text[at:], []byte(properties)) + len(properties)
	return slices.Concat(text[:at], []byte(`"restartPolicy": {"type": "string"},`), text[at:]), nil
}

// start returns a server with policies and with namespaces, by name the value of their
// label secretagent.io/inject. after stands for policies and webhooks that change pods later.
func start(t *testing.T, objects []runtime.Object, namespaces map[string]string, after func(*corev1.Pod)) server {
	t.Helper()
	for name, inject := range namespaces {
		labels := map[string]string{"kubernetes.io/metadata.name": name}
		if inject != "" {
			labels["secretagent.io/inject"] = inject
		}
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	stop := make(chan struct{}) // which nobody closes: one server is for many tests
	clientset := client{fake.NewClientset(objects...)}
	factory := informers.NewSharedInformerFactory(clientset, 0)
	features := utilfeature.DefaultMutableFeatureGate
	must(t, features.Set("MutatingAdmissionPolicy=true"))

	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Pod"), meta.RESTScopeNamespace)
	init := initializer.New(clientset, dynamicfake.NewSimpleDynamicClient(scheme.Scheme), factory,
		authorizerfactory.NewAlwaysAllowAuthorizer(), features, stop, mapper)
	plugins := admission.NewPlugins()
	plugins.Register("ServiceAccount", func(io.Reader) (admission.Interface, error) { return changing(mountAPIToken), nil })
	mutating.Register(plugins)
	plugins.Register("Others", func(io.Reader) (admission.Interface, error) { return changing(after), nil })
	validating.Register(plugins)
	chain, err := plugins.NewFromPlugins([]string{"ServiceAccount", mutating.PluginName, "Others", validating.PluginName},
		noConfig{}, init, admission.Decorators{})
	must(t, err)
	factory.Start(stop)
	factory.WaitForCacheSync(stop)
	s := server{chain.(admission.MutationInterface)}
	// The schemas are fetched in the background.
	for wait := 0; wait < 1000; wait++ {
		_, err := s.create("default", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"secretagent.io/inject": "true"}}})
		if !apierrors.IsServiceUnavailable(err) {
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the schemas did not come")
	return s
}

type noConfig struct{}

func (noConfig) ConfigFor(string) (io.Reader, error) { return nil, nil }

// policies reads what the chart renders. These libraries are of 1.34, where the policy's API is v1beta1.
func policies(t *testing.T, file string) []runtime.Object {
	t.Helper()
	var objects []runtime.Object
	for _, text := range documents(t, file) {
		if strings.Contains(text, "kind: MutatingAdmissionPolicy") {
			text = strings.Replace(text, "apiVersion: admissionregistration.k8s.io/v1\n", "apiVersion: admissionregistration.k8s.io/v1beta1\n", 1)
		}
		json, err := yaml.YAMLToJSONStrict([]byte(text))
		must(t, err)
		object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(json, nil, nil)
		must(t, err)
		again, err := scheme.Scheme.New(*kind)
		must(t, err)
		must(t, yaml.UnmarshalStrict(json, again)) // no unknown field
		if strings.HasPrefix(kind.Group, "admissionregistration") {
			objects = append(objects, object)
		}
	}
	if len(objects) != 6 {
		t.Fatalf("%s has %d objects that are policies or bindings", file, len(objects))
	}
	return objects
}

func documents(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	var all []string
	for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		if strings.Contains(string(document), "kind:") {
			all = append(all, string(document))
		}
	}
}

// changing is an admission plugin that changes pods.
type changing func(*corev1.Pod)

func (changing) Handles(admission.Operation) bool { return true }

func (c changing) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if c != nil {
		c(a.GetObject().(*corev1.Pod))
	}
	return nil
}

// mountAPIToken does what the API server's own plugin does, which runs before policies and again after
// them: every container without a mount at that path gets the token.
func mountAPIToken(pod *corev1.Pod) {
	if automount := pod.Spec.AutomountServiceAccountToken; automount != nil && !*automount {
		return
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == apiToken }) {
				c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "kube-api-access", MountPath: apiToken, ReadOnly: true})
			}
		}
	}
	if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "kube-api-access" }) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "kube-api-access"})
	}
}

const apiToken = "/var/run/secrets/kubernetes.io/serviceaccount"

// create returns the pod as the server would store it.
func (s server) create(namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	pod.Name, pod.Namespace = "app", namespace
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	attributes := admission.NewAttributesRecord(pod, nil, corev1.SchemeGroupVersion.WithKind("Pod"), namespace, pod.Name,
		corev1.SchemeGroupVersion.WithResource("pods"), "", admission.Create, nil, false, nil)
	interfaces := admission.NewObjectInterfacesFromScheme(scheme.Scheme)
	if err := s.chain.Admit(context.Background(), attributes, interfaces); err != nil {
		return nil, err
	}
	return pod, s.chain.(admission.ValidationInterface).Validate(context.Background(), attributes, interfaces)
}

func readPod(t *testing.T, manifest string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	must(t, yaml.UnmarshalStrict([]byte(manifest), pod))
	return pod
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func yamlOf(t *testing.T, object any) string {
	t.Helper()
	text, err := yaml.Marshal(object)
	must(t, err)
	return string(text)
}
