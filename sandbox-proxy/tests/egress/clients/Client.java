import java.net.ProxySelector;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** Fetches a URL over HTTP/2 if it can, with the proxy and roots of JAVA_TOOL_OPTIONS. */
public class Client {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newBuilder().proxy(ProxySelector.getDefault()).build();
        var body = HttpRequest.BodyPublishers.ofString("payload");
        var request = HttpRequest.newBuilder(URI.create(arguments[0])).POST(body).build();
        var answer = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body());
        System.exit(answer.statusCode() == 200 ? 0 : 1);
    }
}
