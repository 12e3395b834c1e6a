package discovery

import (
	"context"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	corev1 "k8s.io/api/core/v1"
)

const kubeToken = "t0ken"

// kubeObject is any typed Kubernetes object.
type kubeObject interface {
	runtime.Object
	metav1.Object
}

// kubeEvent is a change. before is nil for an object that is new.
type kubeEvent struct {
	version       uint64
	resource      string
	before, after kubeObject
}

// kubeAPI speaks Kubernetes' list and watch protocols: chunked lists, watches from a version on with bookmarks, streamed lists
// (sendInitialEvents), selectors, expired versions, in protobuf or JSON as the client accepts.
type kubeAPI struct {
	t *testing.T
	// noStreamedLists makes it an API server without the WatchList feature; onlyJSON one without protobuf.
	noStreamedLists, onlyJSON bool
	url                       string

	mu      sync.Mutex
	version uint64
	oldest  uint64 // the oldest version from which one can watch
	objects map[string]map[string]kubeObject
	events  []kubeEvent
	changed chan struct{} // replaced and closed at each change
	drop    chan struct{} // replaced and closed to end all watches
	down    bool
	served  map[string]int // requests by kind, for the test to know what was used
}

var kubeKinds = map[string]schema.GroupVersionKind{
	"pods":           {Version: "v1", Kind: "Pod"},
	"services":       {Version: "v1", Kind: "Service"},
	"nodes":          {Version: "v1", Kind: "Node"},
	"endpointslices": {Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice"},
}

func newKubeAPI(t *testing.T) *kubeAPI {
	t.Helper()
	k := &kubeAPI{
		t: t, version: 100, oldest: 1, objects: map[string]map[string]kubeObject{}, changed: make(chan struct{}), drop: make(chan struct{}),
		served: map[string]int{},
	}
	mux := http.NewServeMux()
	for _, prefix := range []string{"/api/v1/", "/apis/discovery.k8s.io/v1/"} {
		mux.HandleFunc("GET "+prefix+"{resource}", k.serve)
		mux.HandleFunc("GET "+prefix+"namespaces/{namespace}/{resource}", k.serve)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections) // first: watches
	k.url = srv.URL
	return k
}

func (k *kubeAPI) access() string {
	return fmt.Sprintf("api_server: %q, authorization: {credentials: %s}", k.url, kubeToken)
}

func (k *kubeAPI) put(resource string, o kubeObject) { k.change(resource, o, false) }

func (k *kubeAPI) remove(resource string, o kubeObject) { k.change(resource, o, true) }

func (k *kubeAPI) change(resource string, o kubeObject, remove bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.objects[resource] == nil {
		k.objects[resource] = map[string]kubeObject{}
	}
	key := o.GetNamespace() + "/" + o.GetName()
	e := kubeEvent{resource: resource, before: k.objects[resource][key]}
	k.version++
	e.version = k.version
	stored := o.DeepCopyObject().(kubeObject)
	stored.SetResourceVersion(strconv.FormatUint(k.version, 10))
	if remove {
		delete(k.objects[resource], key)
	} else {
		e.after = stored
		k.objects[resource][key] = stored
	}
	k.events = append(k.events, e)
	close(k.changed)
	k.changed = make(chan struct{})
}

func (k *kubeAPI) dropWatches(compact bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.drop)
	k.drop = make(chan struct{})
	if compact {
		k.oldest, k.events = k.version+1, nil
	}
}

func (k *kubeAPI) setDown(down bool) {
	k.mu.Lock()
	k.down = down
	k.mu.Unlock()
	if down {
		k.dropWatches(false)
	}
}

func (k *kubeAPI) count(kind string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.served[kind]++
}

func (k *kubeAPI) requests(kind string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.served[kind]
}

// kubeRequest is a parsed list or watch.
type kubeRequest struct {
	resource, namespace string
	kind                schema.GroupVersionKind
	labels              labels.Selector
	fields              fields.Selector
	options             metav1.ListOptions
	info                runtime.SerializerInfo
}

func (k *kubeAPI) serve(w http.ResponseWriter, r *http.Request) {
	req, err := k.parse(r)
	if err == nil && r.Header.Get("Authorization") != "Bearer "+kubeToken {
		err = apierrors.NewUnauthorized("Unauthorized")
	}
	k.mu.Lock()
	if err == nil && k.down {
		err = apierrors.NewServiceUnavailable("the API server is going down")
	}
	k.mu.Unlock()
	if err != nil {
		k.fail(w, req, err)
		return
	}
	if req.options.Watch {
		k.watch(r.Context(), w, req)
		return
	}
	k.list(w, req)
}

func (k *kubeAPI) parse(r *http.Request) (*kubeRequest, error) {
	req := &kubeRequest{resource: r.PathValue("resource"), namespace: r.PathValue("namespace")}
	req.info = k.negotiate(r.Header.Get("Accept"))
	kind, ok := kubeKinds[req.resource]
	if !ok || strings.HasPrefix(r.URL.Path, "/apis/") != (kind.Group != "") {
		return req, apierrors.NewNotFound(schema.GroupResource{Resource: req.resource}, "")
	}
	req.kind = kind
	if err := scheme.ParameterCodec.DecodeParameters(r.URL.Query(), schema.GroupVersion{Version: "v1"}, &req.options); err != nil {
		return req, apierrors.NewBadRequest(err.Error())
	}
	var err error
	if req.labels, err = labels.Parse(req.options.LabelSelector); err != nil {
		return req, apierrors.NewBadRequest(err.Error())
	}
	if req.fields, err = fields.ParseSelector(req.options.FieldSelector); err != nil {
		return req, apierrors.NewBadRequest(err.Error())
	}
	for _, f := range req.fields.Requirements() {
		if known := []string{"metadata.name", "metadata.namespace", "spec.nodeName", "status.phase"}; !slices.Contains(known, f.Field) {
			return req, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", f.Field))
		}
	}
	return req, nil
}

// negotiate returns how to serialize for what the client accepts.
func (k *kubeAPI) negotiate(accept string) runtime.SerializerInfo {
	infos := scheme.Codecs.SupportedMediaTypes()
	for part := range strings.SplitSeq(accept, ",") {
		media, _, err := mime.ParseMediaType(part)
		if err != nil || k.onlyJSON {
			continue
		}
		if info, ok := runtime.SerializerInfoForMediaType(infos, media); ok {
			return info
		}
	}
	info, _ := runtime.SerializerInfoForMediaType(infos, runtime.ContentTypeJSON)
	return info
}

func (k *kubeAPI) fail(w http.ResponseWriter, req *kubeRequest, err error) {
	status, ok := err.(apierrors.APIStatus)
	if !ok {
		status = apierrors.NewInternalError(err)
	}
	s := status.Status()
	w.Header().Set("Content-Type", req.info.MediaType)
	w.WriteHeader(int(s.Code))
	if err := encoder(req.info.Serializer, schema.GroupVersion{Version: "v1"}).Encode(&s, w); err != nil {
		k.t.Logf("answering a Kubernetes request: %v", err)
	}
}

func encoder(s runtime.Encoder, gv schema.GroupVersion) runtime.Encoder {
	return scheme.Codecs.EncoderForVersion(s, gv)
}

// selects reports whether the request asks for the object.
func (req *kubeRequest) selects(o kubeObject) bool {
	if o == nil || req.namespace != "" && o.GetNamespace() != req.namespace {
		return false
	}
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	if pod, ok := o.(*corev1.Pod); ok {
		set["spec.nodeName"], set["status.phase"] = pod.Spec.NodeName, string(pod.Status.Phase)
	}
	return req.labels.Matches(labels.Set(o.GetLabels())) && req.fields.Matches(set)
}

// selected returns the objects of the request in the order of their names. The caller holds the lock.
func (k *kubeAPI) selected(req *kubeRequest) []kubeObject {
	var list []kubeObject
	for _, key := range slices.Sorted(maps.Keys(k.objects[req.resource])) {
		if o := k.objects[req.resource][key]; req.selects(o) {
			list = append(list, o)
		}
	}
	return list
}

func (k *kubeAPI) list(w http.ResponseWriter, req *kubeRequest) {
	k.count("list " + req.resource)
	k.mu.Lock()
	version, all := k.version, k.selected(req)
	k.mu.Unlock()
	start := 0
	if token := req.options.Continue; token != "" {
		var at uint64
		if n, err := fmt.Sscanf(token, "%d-%d", &at, &start); n != 2 || err != nil {
			k.fail(w, req, apierrors.NewBadRequest("continue key is not valid"))
			return
		}
		if at != version { // it keeps no old versions to go on with
			k.fail(w, req, apierrors.NewResourceExpired("The provided continue parameter is too old"))
			return
		}
	}
	if want, err := strconv.ParseUint(req.options.ResourceVersion, 10, 64); err == nil && want > version {
		k.fail(w, req, apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", want, version), 1))
		return
	}
	list, err := scheme.Scheme.New(req.kind.GroupVersion().WithKind(req.kind.Kind + "List"))
	if err != nil {
		k.fail(w, req, err)
		return
	}
	end, more := len(all), ""
	if limit := int(req.options.Limit); limit > 0 && start+limit < end {
		end = start + limit
		more = fmt.Sprintf("%d-%d", version, end)
	}
	var items []runtime.Object
	for _, o := range all[min(start, len(all)):end] {
		items = append(items, o.DeepCopyObject()) // encoding sets its kind
	}
	accessor, err := meta.ListAccessor(list)
	if err == nil {
		accessor.SetResourceVersion(strconv.FormatUint(version, 10))
		accessor.SetContinue(more)
		err = meta.SetList(list, items)
	}
	if err != nil {
		k.fail(w, req, err)
		return
	}
	w.Header().Set("Content-Type", req.info.MediaType)
	if err := encoder(req.info.Serializer, req.kind.GroupVersion()).Encode(list, w); err != nil {
		k.t.Logf("answering a Kubernetes list: %v", err)
	}
}

// kubeWatch is a watch that is being served.
type kubeWatch struct {
	*kubeRequest
	api      *kubeAPI
	w        http.ResponseWriter
	stream   streaming.Encoder
	embedded runtime.Encoder
}

func (k *kubeAPI) watch(ctx context.Context, w http.ResponseWriter, req *kubeRequest) {
	streamed := req.options.SendInitialEvents != nil && *req.options.SendInitialEvents
	if streamed && (k.noStreamedLists || req.options.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan) {
		k.count("refused streamed list " + req.resource)
		k.fail(w, req, apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "ListOptions"}, "", nil))
		return
	}
	kind := "watch "
	if streamed {
		kind = "streamed list "
	}
	k.count(kind + req.resource)
	media := req.info.MediaType
	if media != runtime.ContentTypeJSON {
		media += ";stream=watch"
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(http.StatusOK)
	kw := &kubeWatch{
		kubeRequest: req, api: k, w: w, embedded: encoder(req.info.Serializer, req.kind.GroupVersion()),
		stream: streaming.NewEncoder(req.info.StreamSerializer.Framer.NewFrameWriter(w), encoder(req.info.StreamSerializer.Serializer, req.kind.GroupVersion())),
	}
	if s := req.options.TimeoutSeconds; s != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*s)*time.Second)
		defer cancel()
	}
	if err := kw.run(ctx, streamed); err != nil {
		k.t.Logf("a Kubernetes watch of %s ended: %v", req.resource, err)
	}
}

// bookmarkEvery is a minute in an API server.
const bookmarkEvery = 200 * time.Millisecond

func (kw *kubeWatch) run(ctx context.Context, streamed bool) error {
	k := kw.api
	k.mu.Lock()
	drop := k.drop
	at, err := strconv.ParseUint(kw.options.ResourceVersion, 10, 64)
	expired := err == nil && at > 0 && at+1 < k.oldest
	var initial []kubeObject
	if streamed || at == 0 {
		initial, at, expired = k.selected(kw.kubeRequest), k.version, false
	}
	k.mu.Unlock()
	if expired {
		k.count("expired watch " + kw.resource)
		s := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d", at)).Status()
		return kw.send(watch.Error, &s)
	}
	for _, o := range initial {
		if err := kw.send(watch.Added, o); err != nil {
			return err
		}
	}
	if streamed {
		if err := kw.bookmark(at, map[string]string{metav1.InitialEventsAnnotationKey: "true"}); err != nil {
			return err
		}
	}
	tick := time.NewTicker(bookmarkEvery)
	defer tick.Stop()
	for {
		k.mu.Lock()
		changed, events := k.changed, k.events
		k.mu.Unlock()
		for _, e := range events {
			if e.version <= at || e.resource != kw.resource {
				continue
			}
			if err := kw.event(e); err != nil {
				return err
			}
			at = e.version
		}
		select {
		case <-ctx.Done():
			return nil
		case <-drop:
			return nil
		case <-changed:
		case <-tick.C:
			if kw.options.AllowWatchBookmarks {
				if err := kw.bookmark(at, nil); err != nil {
					return err
				}
			}
		}
	}
}

// event sends what a change means to one who sees just what the selectors select.
func (kw *kubeWatch) event(e kubeEvent) error {
	switch before, after := kw.selects(e.before), kw.selects(e.after); {
	case after && before:
		return kw.send(watch.Modified, e.after)
	case after:
		return kw.send(watch.Added, e.after)
	case before:
		gone := e.before.DeepCopyObject().(kubeObject)
		gone.SetResourceVersion(strconv.FormatUint(e.version, 10))
		return kw.send(watch.Deleted, gone)
	}
	return nil
}

func (kw *kubeWatch) bookmark(version uint64, annotations map[string]string) error {
	o, err := scheme.Scheme.New(kw.kind)
	if err != nil {
		return err
	}
	mark := o.(kubeObject)
	mark.SetResourceVersion(strconv.FormatUint(version, 10))
	mark.SetAnnotations(annotations)
	return kw.send(watch.Bookmark, mark)
}

func (kw *kubeWatch) send(kind watch.EventType, o runtime.Object) error {
	e := kw.embedded
	if kind == watch.Error {
		e = encoder(kw.info.Serializer, schema.GroupVersion{Version: "v1"})
	}
	raw, err := runtime.Encode(e, o.DeepCopyObject()) // encoding sets its kind
	if err != nil {
		return err
	}
	if err := kw.stream.Encode(&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: raw}}); err != nil {
		return err
	}
	return http.NewResponseController(kw.w).Flush()
}
