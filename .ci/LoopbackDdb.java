// Starts DynamoDB Local, in memory, on 127.0.0.1 only (its own command listens on every interface), on a
// free port, and writes the port into the file named by the first argument.
import com.amazonaws.services.dynamodbv2.local.server.LocalDynamoDBRequestHandler;
import com.amazonaws.services.dynamodbv2.local.server.LocalDynamoDBServerHandler;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

public class LoopbackDdb {
    public static void main(String[] args) throws Exception {
        Server server = new Server(new InetSocketAddress("127.0.0.1", 0));
        server.setHandler(new LocalDynamoDBServerHandler(
            new LocalDynamoDBRequestHandler(0, true, null, true, false), null));
        server.start();
        int port = ((ServerConnector) server.getConnectors()[0]).getLocalPort();
        Files.writeString(Path.of(args[0]), port + "\n");
        server.join();
    }
}
